"""``RegionAllocator``: which columns of the cache belong to which sequence."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

ALIGNMENT = 64
"""Regions begin at a multiple of this where there is room, so that those of sequences of about the
same length are at equal distances and can be read as one tensor."""
MARGIN = 32
"""Number of free columns between two regions where there is room."""


@dataclass(eq=False)
class Region:
    """Consecutive columns of the cache that belong to a sequence, or are kept."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        """The column after the last one."""
        return self.start + self.length


class RegionAllocator:
    """Divides the columns of a cache into regions.

    A region is as long as its sequence can become, and no longer, wherever it is: only the sum of
    their lengths is limited. Not thread-safe.
    """

    def __init__(self) -> None:
        self.capacity = 0
        """Number of columns."""
        self.num_used = 0
        """Number of columns that belong to regions."""
        self._regions: list[Region] = []
        """In the order of their columns."""

    def allocate(self, length: int, *, is_spaced: bool) -> Region | None:
        """Return a new region, or ``None`` if there are not as many consecutive free columns.

        Args:
            length: number of columns.
            is_spaced: begin at a multiple of the alignment, and leave margins.
        """
        margin, alignment = (MARGIN, ALIGNMENT) if is_spaced else (0, 1)
        before = Region(-margin, 0)
        for after in [*self._regions, Region(self.capacity, 0)]:
            start = round_up(before.stop + margin, alignment)
            if start + length + margin <= after.start:
                return self.allocate_at(start, length)
            before = after
        return None

    def allocate_at(self, start: int, length: int) -> Region:
        """Return a new region of columns that are free."""
        region = Region(start, length)
        self._insert(region)
        return region

    def free(self, region: Region) -> None:
        """Give the columns of a region to others."""
        self._regions.remove(region)
        self.num_used -= region.length

    def trim(self, region: Region, length: int) -> None:
        """Free the last columns of a region."""
        self.num_used -= region.length - length
        region.length = length

    def split(self, region: Region, length: int) -> Region:
        """Cut a region after ``length`` columns, and return the region of the others."""
        rest = Region(region.start + length, region.length - length)
        self.trim(region, length)
        self._insert(rest)
        return rest

    def free_after(self, region: Region) -> int:
        """Return the number of free columns that follow a region."""
        index = self._regions.index(region) + 1
        following = self._regions[index].start if index < len(self._regions) else self.capacity
        return following - region.stop

    def is_last(self, region: Region) -> bool:
        """Return whether no other region follows one."""
        return self._regions[-1] is region

    def compact(self) -> list[tuple[int, Region]]:
        """Move all regions to the first columns, so that the free ones are consecutive.

        Returns:
            The regions that are moved, each with its former first column. They are to be copied in
            this order.
        """
        moved, column = [], 0
        for region in self._regions:
            if region.start != column:
                moved.append((region.start, region))
                region.start = column
            column = region.stop
        return moved

    def _insert(self, region: Region) -> None:
        insort(self._regions, region, key=lambda one: one.start)
        self.num_used += region.length


def round_up(number: int, multiple: int) -> int:
    """Return the next multiple from a number on."""
    return -(-number // multiple) * multiple
