"""The tree of kept tokens, whose columns hold the elements in place of keys and values."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlcore.engines.transformers.prefix_cache import PrefixCache
from vlcore.engines.transformers.prefix_key import common_length
from vlcore.engines.transformers.regions import Region, RegionAllocator


class Columns:
    """A cache of columns that hold one number each."""

    def __init__(self, capacity: int = 1000) -> None:
        self.regions = RegionAllocator()
        self.regions.capacity = capacity
        self.kept = PrefixCache(self.regions)
        self.values = [-1] * capacity

    def region(self, elements: Sequence[int], num_free: int = 0) -> Region:
        region = self.regions.allocate(len(elements) + num_free, is_spaced=False)
        assert region is not None
        self.values[region.start : region.start + len(elements)] = elements
        return region

    def keep(self, elements: Sequence[int], num_free: int = 0) -> None:
        self.kept.keep(list(elements), self.region(elements, num_free))

    def compact(self) -> None:
        for source, region in self.regions.compact():
            self.values[region.start : region.stop] = self.values[source : source + region.length]

    def found(self, elements: Sequence[int]) -> list[int]:
        """Return what is in the columns of the longest kept beginning."""
        prefix = self.kept.find(list(elements))
        found: list[int] = []
        for node in prefix.path:
            found += self.values[node.region.start : node.region.stop]
        return found[: prefix.length]


def test_the_longest_beginning_is_found() -> None:
    columns = Columns()
    columns.keep([1, 2, 3, 4])
    columns.keep([1, 2, 5, 6, 7])
    assert columns.found([1, 2, 3, 9]) == [1, 2, 3]
    assert columns.found([1, 2, 5, 6, 7, 8]) == [1, 2, 5, 6, 7]
    assert columns.found([1, 2]) == [1, 2]
    assert columns.found([2]) == columns.found([]) == []


def test_what_sequences_share_is_kept_once() -> None:
    columns = Columns()
    columns.keep([1, 2, 3, 4], num_free=10)
    assert columns.regions.num_used == columns.kept.num_tokens == 4
    columns.keep([1, 2, 3, 5, 6])
    assert columns.regions.num_used == 6
    columns.keep([1, 2, 3])
    columns.keep([1, 2, 3, 5, 6])
    assert columns.regions.num_used == 6
    columns.keep([1, 2, 3, 5, 6, 7])
    assert columns.regions.num_used == columns.kept.num_tokens == 7


def test_the_least_recently_used_sequence_is_dropped_first() -> None:
    columns = Columns()
    for start in (10, 20, 30):
        columns.keep(range(start, start + 5))
    columns.kept.touch(columns.kept.find(list(range(10, 15))).path)
    assert columns.kept.drop_oldest()
    assert columns.found(range(20, 25)) == []
    assert columns.found(range(10, 15)) == list(range(10, 15))
    assert columns.regions.num_used == columns.kept.num_tokens == 10


def test_sequences_are_dropped_from_their_ends() -> None:
    columns = Columns()
    columns.keep([1, 2, 3, 4])
    columns.keep([1, 2, 5, 6])
    columns.kept.touch(columns.kept.find([1, 2, 3, 4]).path)
    columns.kept.drop_oldest()
    assert columns.found([1, 2, 5, 6]) == [1, 2]
    columns.kept.drop_oldest()
    assert columns.found([1, 2, 3, 4]) == [1, 2]
    columns.kept.drop_oldest()
    assert columns.found([1]) == []
    assert not columns.kept.drop_oldest()
    assert columns.regions.num_used == columns.kept.num_tokens == 0


def test_a_sequence_is_taken_over_with_the_columns_after_it() -> None:
    columns = Columns(20)
    columns.keep([1, 2, 3, 4], num_free=10)
    path = columns.kept.find([1, 2, 3, 4, 5]).path
    assert columns.kept.take(path, 21) is None
    region = columns.kept.take(path, 9)
    assert region is not None
    assert (region.start, region.length) == (0, 9)
    assert columns.found([1]) == []
    assert columns.kept.num_tokens == 0
    assert columns.regions.num_used == 9


def test_a_sequence_with_which_others_begin_is_not_taken_over() -> None:
    columns = Columns()
    columns.keep([1, 2, 3])
    columns.keep([1, 2, 4])
    assert columns.kept.take(columns.kept.find([1, 2]).path, 10) is None
    assert columns.kept.take(columns.kept.find([1, 2, 4]).path, 10) is None
    assert columns.found([1, 2, 3]) == [1, 2, 3]


def test_parts_of_one_sequence_are_taken_over_together() -> None:
    columns = Columns()
    columns.keep([1, 2, 3])
    columns.keep([1, 9])  # divides the first one
    columns.kept.touch(columns.kept.find([1, 2, 3]).path)
    columns.kept.drop_oldest()
    path = columns.kept.find([1, 2, 3]).path
    assert len(path) == 2
    region = columns.kept.take(path, 5)
    assert region is not None
    assert columns.values[region.start : region.start + 3] == [1, 2, 3]


def test_parts_in_different_regions_are_not_taken_over() -> None:
    columns = Columns()
    columns.keep([1, 2])
    other = columns.region([7] * 4)
    columns.keep([1, 2, 3])
    columns.regions.free(other)
    assert columns.kept.take(columns.kept.find([1, 2, 3]).path, 5) is None


def test_any_sequences_within_any_capacity() -> None:
    rng = random.Random(0)
    columns = Columns(60)
    kept: list[list[int]] = []
    for _ in range(800):
        elements = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
        action = rng.random()
        if action < 0.5:
            while columns.regions.capacity - columns.regions.num_used < 20:
                assert columns.kept.drop_oldest()
            columns.compact()
            columns.keep(elements, num_free=rng.randrange(8))
            kept.append(elements)
        elif action < 0.7:
            columns.kept.touch(columns.kept.find(list(elements)).path)
        elif action < 0.8:
            taken = columns.kept.take(columns.kept.find(list(elements)).path, 12)
            if taken is not None:
                columns.regions.free(taken)
        found = columns.found(elements)
        assert found == elements[: len(found)]
        assert len(found) <= max([common_length(one, elements) for one in kept], default=0)
        nodes = list(columns.kept._nodes)
        assert sum(len(node.elements) for node in nodes) == columns.kept.num_tokens
        assert columns.regions.num_used == columns.kept.num_tokens
        assert all(len(node.elements) == node.region.length for node in nodes)
        order = {id(node): index for index, node in enumerate(nodes)}
        assert all(
            order[id(child)] < order[id(node)] for node in nodes for child in node.children.values()
        )
