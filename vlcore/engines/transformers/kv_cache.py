"""``SlotKVCache``: the keys and values of the running sequences, one slot for each.

A token's position in its sequence is its column in the slot. Sequences of any lengths can
therefore be added, grow and be removed without shifting the others, and a step writes only its own
keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from vlcore.errors import EngineUnavailableError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FULL, _SLIDING = "full_attention", "sliding_attention"


class SlotKVCache(Cache):
    """The cache that a transformers model writes and reads.

    Call :meth:`prefill` or :meth:`decode` before each forward pass.

    Args:
        config: configuration of the language model.

    Raises:
        EngineUnavailableError: the state of some layers is not keys and values.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        num_layers = int(config.num_hidden_layers)
        window = getattr(config, "sliding_window", None)
        types = getattr(config, "layer_types", None) or [_SLIDING if window else _FULL] * num_layers
        if unknown := sorted(set(types) - {_FULL, _SLIDING}):
            raise EngineUnavailableError(
                f"the transformers engine supports layers of type {_FULL} and {_SLIDING}; this "
                f"model has {', '.join(unknown)}"
            )
        self._types = tuple(dict.fromkeys(types))
        self._window = window
        self._layers = [_SlotLayer() for _ in range(num_layers)]
        self.num_slots = 0
        """Number of allocated slots."""
        self.slot_length = 0
        """Capacity of each slot, in tokens."""
        super().__init__(layers=list(self._layers))

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers; 0 before the first forward pass."""
        return sum(layer.bytes_per_token for layer in self._layers)

    def reserve(self, num_slots: int, slot_length: int, num_used: int) -> None:
        """Allocate slots, and keep the contents of the first ``num_used`` ones."""
        self.num_slots = self.slot_length = 0  # stays so if the allocation of a layer fails
        for layer in self._layers:
            layer.reserve(num_slots, slot_length, num_used)
        self.num_slots, self.slot_length = num_slots, slot_length

    def prefill(self, first_slot: int) -> None:
        """Let the next forward pass compute whole prompts, for slots from ``first_slot`` on."""
        for layer in self._layers:
            layer.step = _Prefill(first_slot)

    def decode(self, positions: Tensor, longest: int) -> dict[str, Tensor] | Tensor:
        """Let the next forward pass compute one token for each running sequence.

        Args:
            positions: position of each token in its sequence, by slot.
            longest: the highest position plus one.

        Returns:
            The attention mask, or one for each type of layer.

        Shapes:
            positions: [sequences] int64.
            result: [sequences, 1, 1, longest] bool, True where a token is attended to.
        """
        step = _Decode(torch.arange(len(positions), device=positions.device), positions, longest)
        for layer in self._layers:
            layer.step = step
        columns = torch.arange(longest, device=positions.device)
        masks = {_FULL: columns <= positions[:, None]}
        if self._window is not None:
            masks[_SLIDING] = masks[_FULL] & (columns > positions[:, None] - self._window)
        masks = {kind: masks[kind][:, None, None] for kind in self._types}
        return masks if len(masks) > 1 else masks[self._types[0]]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot into another."""
        for states in self._states():
            states[target, :, :length] = states[source, :, :length]

    def clear(self, slot: int) -> None:
        """Set a slot that holds NaN to zero, because no mask would hide NaN from its next user."""
        for states in self._states():
            states[slot].zero_()

    def _states(self) -> Iterator[Tensor]:
        for layer in self._layers:
            yield from (layer.keys, layer.values)


@dataclass(frozen=True)
class _Prefill:
    """A forward pass over whole prompts, which are stored in consecutive slots."""

    first_slot: int


@dataclass(frozen=True)
class _Decode:
    """A forward pass over one token for each running sequence."""

    slots: Tensor
    positions: Tensor
    longest: int


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The keys and values of one layer, [slots, heads, columns, head_dim] each."""

    is_sliding = False
    is_compileable = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step: _Prefill | _Decode = _Prefill(0)
        self.bytes_per_token = 0
        self._shape = (0, 0)

    def reserve(self, num_slots: int, slot_length: int, num_used: int) -> None:
        self._shape = (num_slots, slot_length)
        if self.is_initialized:
            self.keys = _resized(self.keys, num_slots, slot_length, num_used)
            self.values = _resized(self.values, num_slots, slot_length, num_used)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        num_slots, slot_length = self._shape
        self.bytes_per_token = 0
        for name, states in (("keys", key_states), ("values", value_states)):
            _, num_heads, _, head_dim = states.shape
            setattr(self, name, states.new_zeros(num_slots, num_heads, slot_length, head_dim))
            self.bytes_per_token += num_heads * head_dim * states.element_size()
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of a step, and return those that its queries attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = self.step
        if isinstance(step, _Prefill):
            new_slots = slice(step.first_slot, step.first_slot + len(key_states))
            longest = key_states.shape[2]
            self.keys[new_slots, :, :longest] = key_states
            self.values[new_slots, :, :longest] = value_states
            return key_states, value_states
        self.keys[step.slots, :, step.positions] = key_states[:, :, 0]
        self.values[step.slots, :, step.positions] = value_states[:, :, 0]
        used_slots, columns = slice(len(step.slots)), slice(step.longest)
        return self.keys[used_slots, :, columns], self.values[used_slots, :, columns]

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Return the size of a prefill's mask; a decoding step passes its own mask."""
        # The first releases of transformers 5 pass the positions of the queries.
        return len(query_length) if isinstance(query_length, Tensor) else query_length, 0

    def get_seq_length(self) -> int:
        """Return 0, because prompts begin at the first column."""
        return 0

    def get_max_length(self) -> int:
        """Return -1, for no maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return -1, like :meth:`get_max_length`, which is its newer name."""
        return -1


def _resized(states: Tensor, num_slots: int, slot_length: int, num_used: int) -> Tensor:
    """Copy the used slots to a tensor of another size, whose remaining elements are zero."""
    _, num_heads, old_columns, head_dim = states.shape
    resized = states.new_zeros(num_slots, num_heads, slot_length, head_dim)
    kept = min(old_columns, slot_length)
    resized[:num_used, :, :kept] = states[:num_used, :, :kept]
    return resized
