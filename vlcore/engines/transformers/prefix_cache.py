"""``PrefixCache``: tokens of earlier prompts and answers, which later prompts begin with.

It is a radix tree: what several sequences begin with is kept once. The least recently used
sequences are dropped from their ends, so that what is kept always begins at the first token. Keys
and values stay in the columns of the cache where they were computed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from vlcore.engines.transformers.prefix_key import common_length
from vlcore.engines.transformers.regions import Region, RegionAllocator


@dataclass(eq=False)
class KeptTokens:
    """A node of the tree: tokens that follow those of the parent."""

    parent: KeptTokens | None
    """``None`` for the first tokens."""
    elements: list[Hashable]
    region: Region
    """The columns of their keys and values."""
    children: dict[Hashable, KeptTokens] = field(default_factory=dict)
    """The nodes that follow, by their first elements."""


@dataclass(frozen=True)
class KeptPrefix:
    """What is kept of the beginning of a sequence."""

    length: int
    """Number of tokens."""
    path: tuple[KeptTokens, ...]
    """Their nodes from the root on; the last tokens of the last one may not belong to them."""


class PrefixCache:
    """Regions by the elements of a ``PrefixKey``.

    Not thread-safe: it belongs to the engine's thread.

    Args:
        regions: the allocator of the regions.
    """

    def __init__(self, regions: RegionAllocator) -> None:
        self.num_tokens = 0
        """Number of tokens whose keys and values are kept."""
        self._regions = regions
        self._root = KeptTokens(None, [], Region(0, 0))
        self._nodes: OrderedDict[KeptTokens, None] = OrderedDict()
        """All nodes except the root, the most recently used ones last. A node is always more
        recent than its children, so that the first one has none."""

    def find(self, elements: Sequence[Hashable]) -> KeptPrefix:
        """Return the longest kept beginning of a sequence.

        It remains valid until the next call of :meth:`keep`, :meth:`take` or :meth:`drop_oldest`.
        """
        path, num_last = self._walk(elements)
        length = sum(len(node.elements) for node in path[:-1]) + num_last
        return KeptPrefix(length, tuple(path))

    def touch(self, path: Sequence[KeptTokens]) -> None:
        """Mark the nodes of a path from the root as used."""
        for node in reversed(path):
            self._nodes.move_to_end(node)

    def keep(self, elements: Sequence[Hashable], region: Region) -> None:
        """Keep a sequence; free the columns of its region that hold nothing new.

        Args:
            elements: those of the sequence, of the first columns of the region.
            region: the region of the sequence, which belongs to the cache from now on.
        """
        path, num_last = self._walk(elements)
        num_known = sum(len(node.elements) for node in path[:-1]) + num_last
        if num_known == len(elements):  # all of it is kept already
            self.touch(path)
            self._regions.free(region)
            return
        if path and num_last < len(path[-1].elements):
            path[-1] = self._split(path[-1], num_last)
        self._regions.trim(region, len(elements))
        if num_known:
            known, region = region, self._regions.split(region, num_known)
            self._regions.free(known)
        self._insert(KeptTokens(path[-1] if path else None, list(elements[num_known:]), region))
        self.touch(path)
        self.num_tokens += region.length

    def take(self, path: Sequence[KeptTokens], length: int) -> Region | None:
        """Give up a sequence, if nothing else that is kept begins with it.

        Args:
            path: its nodes, from the root on.
            length: length of the region in tokens, at least as long as the sequence.

        Returns:
            A region that begins with the sequence's columns, if they are consecutive and the
            columns that follow are free.
        """
        if not path:
            return None
        for node, after in zip(path, [*path[1:], None], strict=True):
            if set(node.children.values()) != ({after} if after else set()):
                return None
            if after is not None and node.region.stop != after.region.start:
                return None
        num_kept = sum(node.region.length for node in path)
        if self._regions.free_after(path[-1].region) < length - num_kept:
            return None
        for node in reversed(path):
            self._drop(node)
        return self._regions.allocate_at(path[0].region.start, length)

    def drop_oldest(self) -> bool:
        """Drop the end of the least recently used sequence.

        Returns:
            Whether there was something to drop.
        """
        if self._nodes:
            self._drop(next(iter(self._nodes)))
            return True
        return False

    def _walk(self, elements: Sequence[Hashable]) -> tuple[list[KeptTokens], int]:
        """Return the nodes that a sequence begins with, and how much of the last one it has."""
        path: list[KeptTokens] = []
        node, start, num_last = self._root, 0, 0
        while start < len(elements):
            child = node.children.get(elements[start])
            if child is None:
                break
            path.append(child)
            stop = start + len(child.elements)
            num_last = common_length(child.elements, elements[start:stop])
            if num_last < len(child.elements):
                break
            node, start = child, stop
        return path, num_last

    def _split(self, node: KeptTokens, num_first: int) -> KeptTokens:
        """Split a node in two, and return the first one."""
        rest = self._regions.split(node.region, num_first)
        first = KeptTokens(node.parent, node.elements[:num_first], node.region)
        node.region, node.elements, node.parent = rest, node.elements[num_first:], first
        first.children[node.elements[0]] = node
        self._insert(first)
        return first

    def _insert(self, node: KeptTokens) -> None:
        (node.parent or self._root).children[node.elements[0]] = node
        self._nodes[node] = None

    def _drop(self, node: KeptTokens) -> None:
        del (node.parent or self._root).children[node.elements[0]], self._nodes[node]
        self._regions.free(node.region)
        self.num_tokens -= len(node.elements)
