"""``StridedRows``: running sequences whose keys and values can be read as one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vlcore.engines.transformers.regions import MARGIN

_CALL_BYTES = 2**16
"""How many bytes of padding a CPU reads in about the time that one more call takes."""


@dataclass(frozen=True)
class StridedRows:
    """Consecutive sequences of a batch whose regions are at equal distances."""

    rows: slice
    """The sequences, by their index in the batch."""
    start: int
    """The first column of the first sequence."""
    stride: int
    """The distance from the first column of a sequence to that of the next one."""


@dataclass(frozen=True)
class CachedLength:
    """Where a running sequence is in the cache."""

    num_tokens: int
    start: int
    """Its first column."""
    num_padding: int
    """Number of columns after its region that belong to no running sequence. Its tokens cannot be
    padded with others, because those of a sequence that fails may be NaN, which no mask hides."""


def max_padding(bytes_per_token: int, device_type: str) -> int:
    """Return by how many columns it pays to pad a sequence.

    Args:
        bytes_per_token: size of one token's keys and values in a layer.
        device_type: where they are read.
    """
    if device_type != "cpu":
        return MARGIN
    return min(MARGIN, _CALL_BYTES // max(1, bytes_per_token))


def arrange(sequences: Sequence[CachedLength], padding: int) -> list[list[int]]:
    """Divide sequences into few groups of about the same length, each at equal distances.

    All sequences grow by one token in each step, so that their differences remain.

    Args:
        sequences: the sequences.
        padding: by how many columns a sequence is padded at most.

    Returns:
        The indexes of the sequences of each group, in the order of their columns.
    """
    groups: list[list[int]] = []
    left = sorted(range(len(sequences)), key=lambda index: -sequences[index].num_tokens)
    while left:
        longest = sequences[left[0]].num_tokens
        similar = {
            index
            for index in left
            if longest - sequences[index].num_tokens <= min(padding, sequences[index].num_padding)
            or sequences[index].num_tokens == longest
        }
        groups += _at_equal_distances({index: sequences[index].start for index in similar})
        left = [index for index in left if index not in similar]
    return groups


def strided_rows(groups: Sequence[Sequence[int]], starts: Sequence[int]) -> Iterator[StridedRows]:
    """Describe groups of sequences whose order in the batch is that of the groups.

    Args:
        groups: the result of :func:`arrange`.
        starts: the first column of each sequence that was arranged.
    """
    row = 0
    for group in groups:
        stride = _stride([starts[index] for index in group]) or 0
        yield StridedRows(slice(row, row + len(group)), starts[group[0]], stride)
        row += len(group)


def _at_equal_distances(starts: dict[int, int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for index in sorted(starts, key=lambda index: starts[index]):
        last = groups[-1] if groups else []
        if last and _stride([starts[one] for one in (*last, index)]) is not None:
            last.append(index)
        else:
            groups.append([index])
    return groups


def _stride(starts: Sequence[int]) -> int | None:
    """Return the distance between each two of them; ``None`` if there are several distances."""
    distances = {after - before for before, after in pairwise(starts)}
    return distances.pop() if len(distances) == 1 else None
