"""The tree of kept keys and values, with numbers in their place."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from vlcore.engines.transformers.prefix_cache import PrefixCache
from vlcore.engines.transformers.prefix_key import common_length


def keep(cache: PrefixCache, elements: Sequence[int], max_tokens: int = 1000) -> list[range]:
    """Keep a sequence whose states are its elements; return the columns that were read."""
    read: list[range] = []

    def states(start: int, stop: int) -> tuple[torch.Tensor, ...]:
        read.append(range(start, stop))
        return (torch.tensor(elements[start:stop])[None, :, None].clone(),)

    cache.keep(list(elements), max_tokens, states)
    return read


def found(cache: PrefixCache, elements: Sequence[int]) -> list[int]:
    """Return the kept states of the longest beginning."""
    prefix = cache.find(list(elements))
    states = torch.cat([part[0] for part in prefix.parts], dim=1) if prefix.parts else None
    return [] if states is None else states[0, : prefix.length, 0].tolist()


def test_the_longest_beginning_is_found() -> None:
    cache = PrefixCache()
    keep(cache, [1, 2, 3, 4])
    keep(cache, [1, 2, 5, 6, 7])
    assert found(cache, [1, 2, 3, 9]) == [1, 2, 3]
    assert found(cache, [1, 2, 5, 6, 7, 8]) == [1, 2, 5, 6, 7]
    assert found(cache, [1, 2]) == [1, 2]
    assert found(cache, [2]) == found(cache, []) == []


def test_what_sequences_share_is_kept_once() -> None:
    cache = PrefixCache()
    assert keep(cache, [1, 2, 3, 4]) == [range(4)]
    assert keep(cache, [1, 2, 3, 5, 6]) == [range(3, 5)]
    assert keep(cache, [1, 2, 3]) == keep(cache, [1, 2, 3, 5, 6]) == []
    assert keep(cache, [1, 2, 3, 5, 6, 7]) == [range(5, 6)]
    assert cache.num_tokens == 7


def test_the_least_recently_used_sequence_is_dropped_first() -> None:
    cache = PrefixCache()
    for start in (10, 20, 30):
        keep(cache, range(start, start + 5), 15)
    cache.touch(list(range(10, 15)))
    keep(cache, range(40, 45), 15)
    assert found(cache, range(20, 25)) == []
    assert found(cache, range(10, 15)) == list(range(10, 15))
    assert cache.num_tokens == 15


def test_sequences_are_dropped_from_their_ends() -> None:
    cache = PrefixCache()
    keep(cache, [1, 2, 3, 4])
    keep(cache, [1, 2, 5, 6])
    cache.touch([1, 2, 3, 4])
    cache.shrink(5)
    assert found(cache, [1, 2, 5, 6]) == [1, 2]
    cache.shrink(3)
    assert found(cache, [1, 2, 3, 4]) == [1, 2]
    cache.shrink(-1)
    assert cache.num_tokens == 0
    assert found(cache, [1]) == []


def test_the_beginning_of_a_sequence_that_is_too_long_is_kept() -> None:
    cache = PrefixCache()
    keep(cache, [7, 8])
    assert keep(cache, range(20), 6) == [range(6)]
    assert found(cache, range(20)) == list(range(6))
    assert keep(cache, range(20), 4) == []
    assert cache.num_tokens <= 6
    assert keep(cache, [5], 0) == []


def test_a_prefix_stays_valid_when_it_is_dropped() -> None:
    cache = PrefixCache()
    keep(cache, [1, 2, 3])
    prefix = cache.find([1, 2, 3])
    cache.shrink(0)
    keep(cache, [4, 5, 6])
    assert prefix.parts[0][0][0, :, 0].tolist() == [1, 2, 3]


def test_memory_of_a_dropped_part_is_freed() -> None:
    cache = PrefixCache()
    keep(cache, [1, 2, 3, 4])
    keep(cache, [1, 5])
    for node in cache._nodes:
        (states,) = node.states
        assert states.untyped_storage().nbytes() == states.nbytes


def test_any_sequences_within_any_budget() -> None:
    rng = random.Random(0)
    cache = PrefixCache()
    kept: list[list[int]] = []
    for _ in range(500):
        elements = [rng.randrange(3) for _ in range(rng.randrange(12))]
        if rng.random() < 0.5:
            budget = rng.randrange(40)
            cache.shrink(budget)
            keep(cache, elements, budget)
            assert cache.num_tokens <= budget
            kept.append(elements)
        elif rng.random() < 0.5:
            cache.touch(elements)
        states = found(cache, elements)
        assert states == elements[: len(states)]
        assert len(states) <= max([common_length(one, elements) for one in kept], default=0)
        assert sum(len(node.elements) for node in cache._nodes) == cache.num_tokens
        order = {id(node): index for index, node in enumerate(cache._nodes)}
        assert all(
            order[id(child)] < order[id(node)]
            for node in cache._nodes
            for child in node.children.values()
        )
