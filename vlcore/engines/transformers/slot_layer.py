"""``SlotLayer``: what one layer of a language model keeps for each running sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Prefill:
    """A forward pass over prompts, or parts of them, in consecutive slots."""

    first_slot: int
    columns: tuple[range, ...]
    """Those of each prompt that are computed; the columns before them were computed earlier. Empty
    where all prompts are computed from their first token on."""

    @property
    def begins(self) -> bool:
        """Whether all prompts are computed from their first token on."""
        return not any(columns.start for columns in self.columns)


@dataclass(frozen=True)
class Decode:
    """A forward pass over one token for each running sequence.

    Shapes:
        slots, positions: [sequences] int64.
    """

    slots: Tensor
    positions: Tensor
    longest: int


class SlotLayer(Protocol):
    """The part of the cache that belongs to one layer, with one slot for each sequence."""

    bytes_per_token: int
    """Size of what is kept for a token; 0 before the first forward pass."""
    bytes_per_slot: int
    """Size of what is kept for a sequence of any length; 0 before the first forward pass."""

    def begin(self, step: Prefill | Decode) -> None:
        """Prepare for the next forward pass."""

    def reserve(self, num_slots: int, slot_length: int, num_used: int) -> None:
        """Allocate slots, and keep the contents of the first ``num_used`` ones."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot into another."""

    def clear(self, slot: int) -> None:
        """Set a slot to zero."""

    def read(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """Return copies of what is kept for the tokens of some columns.

        Shapes:
            result: [heads, stop - start, head_dim] each.
        """

    def write(self, slot: int, start: int, states: tuple[Tensor, ...]) -> None:
        """Write what :meth:`read` returned, from a column on."""
