"""Where a prompt can be cut: between its tokens, and not within an attention group."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def group_columns(groups: Tensor) -> dict[int, range]:
    """Return the columns from the first to the last token of each attention group.

    Shapes:
        groups: [tokens] int64, -1 or a group.
    """
    columns: dict[int, range] = {}
    for column, group in enumerate(groups.tolist()):
        if group >= 0:
            first = columns[group].start if group in columns else column
            columns[group] = range(first, column + 1)
    return columns


def last_cut(groups: Iterable[range], column: int) -> int:
    """Return the last place up to a column where no group is cut."""
    for group in sorted(groups, key=lambda group: group.start, reverse=True):
        if group.start < column < group.stop:
            column = group.start
    return column


def next_cut(groups: Iterable[range], column: int) -> int:
    """Return the first place from a column on where no group is cut."""
    for group in sorted(groups, key=lambda group: group.start):
        if group.start < column < group.stop:
            column = group.stop
    return column
