"""``PrefixCache``: keys and values of earlier prompts and answers, which later prompts begin with.

It is a radix tree: what several sequences begin with is kept once. The least recently used
sequences are dropped from their ends, so that what is kept always begins at the first token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from vlcore.engines.transformers.prefix import Prefix, States
from vlcore.engines.transformers.prefix_key import common_length


@dataclass(eq=False)
class _Node:
    """Tokens that follow those of the parent."""

    parent: _Node | None
    """``None`` for the first tokens."""
    elements: list[Hashable]
    states: States
    children: dict[Hashable, _Node] = field(default_factory=dict)
    """The nodes that follow, by their first elements."""


class PrefixCache:
    """Keys and values by the elements of a ``PrefixKey``, limited in tokens.

    Not thread-safe: it belongs to the engine's thread.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        """Number of tokens whose keys and values are kept."""
        self._root = _Node(None, [], ())
        self._nodes: OrderedDict[_Node, None] = OrderedDict()
        """All nodes except the root, the most recently used ones last. A node is always more
        recent than its children, so that the first one has none."""

    def find(self, elements: Sequence[Hashable]) -> Prefix:
        """Return the longest kept beginning of a sequence.

        It remains valid if it is dropped afterwards.
        """
        path, num_last = self._walk(elements)
        length = sum(len(node.elements) for node in path[:-1]) + num_last
        return Prefix(length, parts=tuple(node.states for node in path))

    def touch(self, elements: Sequence[Hashable]) -> None:
        """Mark what is kept of a sequence as used."""
        path, _ = self._walk(elements)
        for node in reversed(path):
            self._nodes.move_to_end(node)

    def keep(
        self, elements: Sequence[Hashable], max_tokens: int, read: Callable[[int, int], States]
    ) -> None:
        """Keep a sequence, or as much of its beginning as there is room for.

        Args:
            elements: those of the sequence.
            max_tokens: how many tokens may be kept in all. Others are dropped to make room.
            read: returns a copy of the keys and values from one column up to another.
        """
        path, num_last = self._walk(elements)
        if path and num_last < len(path[-1].elements):
            if sum(len(node.elements) for node in path[:-1]) + num_last == len(elements):
                self.touch(elements)  # all of it is kept already
                return
            path[-1] = self._split(path[-1], num_last)
        for node in reversed(path):
            self._nodes.move_to_end(node)
        start = sum(len(node.elements) for node in path)
        while self._nodes and self.num_tokens + len(elements) - start > max_tokens:
            oldest = next(iter(self._nodes))
            if oldest in path:
                break
            self._drop(oldest)
        stop = min(len(elements), start + max(0, max_tokens - self.num_tokens))
        if stop > start:
            node = _Node(path[-1] if path else None, list(elements[start:stop]), read(start, stop))
            self._insert(node)
            for ancestor in reversed(path):
                self._nodes.move_to_end(ancestor)
            self.num_tokens += stop - start

    def shrink(self, max_tokens: int) -> None:
        """Drop the least recently used sequences until at most ``max_tokens`` tokens are kept."""
        while self.num_tokens > max(0, max_tokens):
            self._drop(next(iter(self._nodes)))

    def _walk(self, elements: Sequence[Hashable]) -> tuple[list[_Node], int]:
        """Return the nodes that a sequence begins with, and how much of the last one it has."""
        path: list[_Node] = []
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

    def _split(self, node: _Node, num_first: int) -> _Node:
        """Split a node in two, and return the first one."""
        # Both are copied, because a part of a tensor would keep the memory of all of it.
        first = _Node(node.parent, node.elements[:num_first], _slice(node.states, 0, num_first))
        node.states = _slice(node.states, num_first, len(node.elements))
        node.elements = node.elements[num_first:]
        node.parent = first
        first.children[node.elements[0]] = node
        self._insert(first)
        return first

    def _insert(self, node: _Node) -> None:
        (node.parent or self._root).children[node.elements[0]] = node
        self._nodes[node] = None

    def _drop(self, node: _Node) -> None:
        del (node.parent or self._root).children[node.elements[0]], self._nodes[node]
        self.num_tokens -= len(node.elements)


def _slice(states: States, start: int, stop: int) -> States:
    return tuple(one[:, start:stop].clone() for one in states)
