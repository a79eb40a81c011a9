"""``KVCacheManager``: gives the columns of the cache to sequences, and keeps those that have ended.

A sequence receives as many columns as it can need when its prompt begins, so that it never waits
for another one afterwards. When it ends, what can be reused stays where it is. A prompt that
continues it takes its columns over; other prompts with the same beginning copy it. Kept tokens give
way to new sequences, the least recently used ones first.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from vlcore.engines.transformers.kv_cache import KVCache
from vlcore.engines.transformers.prefix import MIN_LENGTH, Prefix
from vlcore.engines.transformers.prefix_cache import KeptTokens, PrefixCache
from vlcore.engines.transformers.prompt_chunk import PromptChunk
from vlcore.engines.transformers.regions import (
    ALIGNMENT,
    MARGIN,
    Region,
    RegionAllocator,
    round_up,
)
from vlcore.engines.transformers.sequence import TransformersSequence
from vlcore.engines.transformers.strided_rows import CachedLength
from vlcore.errors import EngineError


class KVCacheManager:
    """Manages the columns of a cache, up to a maximum number.

    Not thread-safe: it belongs to the engine's thread.

    Args:
        cache: the cache.
    """

    def __init__(self, cache: KVCache) -> None:
        self.max_cached_tokens = 0
        """Maximum number of columns: the maximum lengths of all sequences, and the kept tokens."""
        self._cache = cache
        self._regions = RegionAllocator()
        self.kept = PrefixCache(self._regions)
        """Tokens of sequences that have ended."""

    def find_prefix(
        self, sequence: TransformersSequence, running: Iterable[TransformersSequence]
    ) -> Prefix:
        """Return the longest beginning of a prompt whose keys and values can be reused.

        Args:
            sequence: the sequence of the prompt.
            running: other sequences.
        """
        if sequence.prefix_key is None or sequence.wants_prompt_logits:
            return Prefix()
        elements = sequence.prefix_key.elements
        longest = Prefix(self.kept.find(elements).length)
        for other in running:
            length = other.num_common(elements)
            if length > longest.length:
                longest = Prefix(length, other)
        return longest.for_prompt(sequence)

    def assign(self, chunk: PromptChunk) -> None:
        """Give columns to the sequences of a prompt, unless they have them.

        The columns of the prompt's prefix are taken over or copied. Where there is no room for both
        the sequences and what is kept of the prefix, the first sequence begins without it.
        """
        first = chunk.first
        if first.region is None:
            first.num_computed = first.num_reusable = self._assign_first(first, chunk.prefix)
            for sequence in chunk.group:
                sequence.num_cached = first.num_computed
        for sequence in chunk.group[1:]:
            if sequence.region is None:
                sequence.region = self._allocate(sequence.max_num_tokens)

    def copy_prompt(self, source: TransformersSequence, target: TransformersSequence) -> None:
        """Copy what is computed of one sequence to another one with the same prompt."""
        if source.region is not None and target.region is not None:
            self._cache.copy(source.region.start, target.region.start, source.num_computed)
            target.num_computed = source.num_computed

    def release(self, sequence: TransformersSequence, *, is_damaged: bool = False) -> None:
        """Take the columns of a sequence that has ended, and keep what can be reused.

        Args:
            sequence: the sequence.
            is_damaged: whether a forward pass failed, so that any of its columns may hold NaN.
        """
        region, sequence.region = sequence.region, None
        if region is None:
            return
        num_good = sequence.num_reusable
        if is_damaged or num_good < sequence.num_computed:
            self._cache.clear(region.start + num_good, region.length - num_good)
        elements = sequence.reusable_elements
        if elements:
            self.kept.keep(elements, region)
        else:
            self._regions.free(region)

    def cached_lengths(
        self, sequences: list[TransformersSequence], others: Iterable[TransformersSequence]
    ) -> list[CachedLength]:
        """Return where running sequences are.

        Args:
            sequences: the sequences.
            others: other sequences that have columns.
        """
        regions = [(one, one.region) for one in sequences if one.region is not None]
        taken = sorted(
            [region.start for _, region in regions]
            + [one.region.start for one in others if one.region is not None]
            + [self._regions.capacity]
        )
        following = dict(pairwise(taken))
        return [
            CachedLength(one.num_tokens, region.start, following[region.start] - region.stop)
            for one, region in regions
        ]

    def _assign_first(self, sequence: TransformersSequence, prefix: Prefix) -> int:
        """Give columns to a sequence, and return the length of the prefix that they hold."""
        max_length, key = sequence.max_num_tokens, sequence.prefix_key
        if key is None or not prefix.length:
            sequence.region = self._allocate(max_length)
            return 0
        if prefix.sequence is not None:
            sequence.region = self._allocate(max_length)
            source = prefix.sequence.region
            if source is None:
                return 0
            self._cache.copy(source.start, sequence.region.start, prefix.length)
            return prefix.length
        elements = key.elements[: prefix.length]
        # Parts of it may have given way to prompts that are computed together with this one.
        kept = self.kept.find(elements)
        length = Prefix(kept.length).for_prompt(sequence).length
        self.kept.touch(kept.path)
        sequence.region = self._take_over(kept.path, length, max_length)
        if sequence.region is not None:
            return length
        sequence.region = self._allocate(max_length)
        kept = self.kept.find(elements)  # it may have given way to the sequence
        length = Prefix(kept.length).for_prompt(sequence).length
        self._copy_kept(kept.path, length, sequence.region)
        return length

    def _take_over(
        self, path: tuple[KeptTokens, ...], prefix_length: int, max_length: int
    ) -> Region | None:
        """Return the region of a kept prefix, lengthened for the sequence that continues it."""
        num_kept = sum(node.region.length for node in path)
        if not path or num_kept - prefix_length >= MIN_LENGTH:
            return None
        last = path[-1].region
        missing = max_length - num_kept - self._regions.free_after(last)
        if missing > 0 and self._regions.is_last(last):
            self._grow(missing)
        return self.kept.take(path, max_length)

    def _copy_kept(self, path: tuple[KeptTokens, ...], num_tokens: int, region: Region) -> None:
        column = region.start
        for node in path:
            length = min(node.region.length, num_tokens - (column - region.start))
            self._cache.copy(node.region.start, column, length)
            column += length

    def _allocate(self, length: int) -> Region:
        """Return a region, for which kept tokens are dropped if necessary."""
        while True:
            can_grow = self._regions.capacity < self.max_cached_tokens
            region = self._regions.allocate(length, is_spaced=True)
            if region is None and not can_grow:
                region = self._regions.allocate(length, is_spaced=False)
            if region is not None:
                return region
            if can_grow:
                self._grow(length + MARGIN)
            elif not self.kept.drop_oldest():
                self._compact()

    def _compact(self) -> None:
        moved = self._regions.compact()
        if not moved:
            raise EngineError("the KV cache has no room for a sequence that was admitted")
        for source, region in moved:
            self._cache.copy(source, region.start, region.length)

    def _grow(self, num_columns: int) -> None:
        """Enlarge the cache by at least a number of columns, as far as its maximum allows."""
        capacity = self._regions.capacity
        wanted = round_up(max(2 * capacity, capacity + num_columns), ALIGNMENT)
        self._cache.reserve(min(wanted, self.max_cached_tokens))
        self._regions.capacity = self._cache.num_columns
