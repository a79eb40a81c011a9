"""``CacheLayer``: what one layer of a language model keeps for the sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class AttentionCall:
    """Consecutive sequences of a forward pass whose attention is computed by one call.

    Shapes:
        mask: [sequences, 1, queries, columns], what each query attends to; ``None`` where that is
            all columns, or those up to the query's own.
    """

    rows: slice
    """The sequences, by their index in the forward pass."""
    start: int
    """The first column of the first sequence that is attended to."""
    stride: int
    """The distance from a sequence's first column to that of the next one."""
    length: int
    """Number of columns of each sequence."""
    mask: Tensor | None = None


@dataclass(frozen=True)
class Prefill:
    """A forward pass over prompts, or parts of them."""

    columns: tuple[range, ...]
    """The columns of the cache that are computed, for each prompt."""
    calls: Mapping[str, Sequence[AttentionCall]]
    """How attention is computed, by the type of the layer."""
    begins: bool
    """Whether all prompts are computed from their first token on, so that nothing that is cached
    is attended to. There is a single call then, for all of them."""


@dataclass(frozen=True)
class Decode:
    """A forward pass over one token of each running sequence.

    Shapes:
        columns: [sequences] int64, the columns of the cache that are computed.
    """

    columns: Tensor
    calls: Mapping[str, Sequence[AttentionCall]]
    """How attention is computed, by the type of the layer."""


class CacheLayer(Protocol):
    """The part of the cache that belongs to one layer."""

    bytes_per_token: int
    """Size of what is kept for a token; 0 before the first forward pass."""
    bytes_per_sequence: int
    """Size of what is kept for a sequence of any length; 0 before the first forward pass."""

    def begin(self, step: Prefill | Decode) -> None:
        """Prepare for the next forward pass."""

    def reserve(self, num_columns: int) -> None:
        """Enlarge the layer to a number of columns, and keep its contents."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy columns, which may overlap."""

    def clear(self, start: int, length: int) -> None:
        """Set columns to zero."""

    def arrange(self, rows: Sequence[int]) -> None:
        """Set the order of the running sequences.

        Args:
            rows: the former index of each of them; those of the prompts that were computed last
                follow those of the sequences that were running.
        """
