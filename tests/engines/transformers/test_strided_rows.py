from __future__ import annotations

from vlcore.engines.transformers.strided_rows import (
    CachedLength,
    StridedRows,
    arrange,
    max_padding,
    strided_rows,
)


def cached(*sequences: tuple[int, int], num_padding: int = 64) -> list[CachedLength]:
    """Return sequences of given lengths and first columns."""
    return [CachedLength(length, start, num_padding) for length, start in sequences]


def test_equally_long_sequences_at_equal_distances_are_one_group() -> None:
    sequences = cached((9, 256), (9, 0), (9, 128))
    groups = arrange(sequences, 0)
    assert groups == [[1, 2, 0]]
    starts = [one.start for one in sequences]
    assert list(strided_rows(groups, starts)) == [StridedRows(slice(0, 3), 0, 128)]


def test_sequences_at_other_distances_are_another_group() -> None:
    sequences = cached((9, 0), (9, 64), (9, 192), (9, 320), (9, 1000))
    groups = arrange(sequences, 0)
    assert groups == [[0, 1], [2, 3], [4]]
    assert list(strided_rows(groups, [one.start for one in sequences])) == [
        StridedRows(slice(0, 2), 0, 64),
        StridedRows(slice(2, 4), 192, 128),
        StridedRows(slice(4, 5), 1000, 0),
    ]


def test_sequences_of_about_the_same_length_are_padded() -> None:
    sequences = cached((100, 0), (90, 128), (69, 256), (70, 384))
    assert arrange(sequences, 31) == [[0, 1, 2, 3]]
    assert arrange(sequences, 30) == [[0, 1], [3], [2]]
    assert arrange(sequences, 0) == [[0], [1], [3], [2]]


def test_a_sequence_without_free_columns_after_it_is_not_padded() -> None:
    sequences = [CachedLength(20, 0, 0), CachedLength(18, 64, 1), CachedLength(18, 128, 2)]
    assert arrange(sequences, 64) == [[0, 2], [1]]


def test_large_tokens_are_padded_less() -> None:
    assert max_padding(1, "cpu") == max_padding(2**20, "cuda") == 32
    assert max_padding(2**14, "cpu") == 4
    assert max_padding(0, "cpu") == 32
