from __future__ import annotations

import random

from vlcore.engines.transformers.regions import Region, RegionAllocator


def allocator(capacity: int) -> RegionAllocator:
    made = RegionAllocator()
    made.capacity = capacity
    return made


def allocate(regions: RegionAllocator, length: int, *, is_spaced: bool = False) -> Region:
    region = regions.allocate(length, is_spaced=is_spaced)
    assert region is not None
    return region


def test_spaced_regions_are_at_equal_distances_with_a_margin() -> None:
    regions = allocator(400)
    starts = [allocate(regions, length, is_spaced=True).start for length in (90, 70, 96)]
    assert starts == [0, 128, 256]
    assert regions.allocate(10, is_spaced=True) is None
    assert allocate(regions, 10).start == 90


def test_the_columns_of_a_freed_region_are_given_to_others() -> None:
    regions = allocator(30)
    first, second, third = (allocate(regions, 10) for _ in range(3))
    assert regions.allocate(1, is_spaced=False) is None
    regions.free(first)
    regions.free(third)
    assert regions.allocate(11, is_spaced=False) is None
    assert allocate(regions, 10).start == 0
    assert regions.free_after(second) == 10
    assert regions.num_used == 20


def test_a_region_is_trimmed_and_split() -> None:
    regions = allocator(30)
    region = allocate(regions, 30)
    regions.trim(region, 20)
    rest = regions.split(region, 5)
    assert (region.start, region.stop, rest.start, rest.stop) == (0, 5, 5, 20)
    assert regions.num_used == 20
    assert regions.is_last(rest)
    regions.free(region)
    assert allocate(regions, 5).start == 0


def test_free_columns_are_made_consecutive() -> None:
    regions = allocator(40)
    made = [allocate(regions, 10) for _ in range(4)]
    regions.free(made[0])
    regions.free(made[2])
    assert regions.compact() == [(10, made[1]), (30, made[3])]
    assert [one.start for one in (made[1], made[3])] == [0, 10]
    assert allocate(regions, 20).start == 20
    assert regions.compact() == []


def test_regions_never_overlap() -> None:
    rng = random.Random(0)
    regions = allocator(300)
    made: list[Region] = []
    for _ in range(2000):
        action = rng.random()
        if action < 0.5 or not made:
            length = rng.randrange(1, 40)
            region = regions.allocate(length, is_spaced=rng.random() < 0.5)
            made += [region] if region is not None else []
        elif action < 0.8:
            regions.free(made.pop(rng.randrange(len(made))))
        elif action < 0.9:
            region = rng.choice(made)
            if region.length > 1:
                made.append(regions.split(region, rng.randrange(1, region.length)))
        else:
            regions.compact()
        columns = [column for one in made for column in range(one.start, one.stop)]
        assert len(set(columns)) == len(columns) == regions.num_used
        assert max(columns, default=0) < regions.capacity
