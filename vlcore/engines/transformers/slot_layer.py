"""``SlotLayer``: what one layer of a language model keeps for each running sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Prefill:
    """A forward pass over whole prompts, which are stored in consecutive slots."""

    first_slot: int


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
