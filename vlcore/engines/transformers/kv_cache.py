"""``SlotKVCache``: the keys and values of the running sequences, one slot for each.

A token's position in its sequence is its column in the slot. Sequences of any lengths can
therefore be added, grow and be removed without shifting the others, and a step writes only its own
keys and values. Layers without attention keep a state in each slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from vlcore.engines.transformers.attention_masks import STATES, layer_types
from vlcore.engines.transformers.slot_layer import Decode, Prefill, SlotLayer
from vlcore.engines.transformers.state_layer import make_state_layer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class SlotKVCache(Cache):
    """The cache that a transformers model writes and reads.

    Call :meth:`prefill` or :meth:`decode` before each forward pass.

    Args:
        config: configuration of the language model.

    Raises:
        EngineUnavailableError: the engine does not support the type of some layers.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        self._layers: list[SlotLayer] = [
            make_state_layer() if kind in STATES else _KeyValueLayer()
            for kind in layer_types(config)
        ]
        self.num_slots = 0
        """Number of allocated slots."""
        self.slot_length = 0
        """Capacity of each slot, in tokens."""
        super().__init__(layers=cast("Any", list(self._layers)))

    @property
    def has_states(self) -> bool:
        """Whether some layers keep a state of all earlier tokens, which padding would change."""
        return any(not isinstance(layer, _KeyValueLayer) for layer in self._layers)

    @property
    def bytes_per_token(self) -> int:
        """Size of one token's keys and values in all layers; 0 before the first forward pass."""
        return sum(layer.bytes_per_token for layer in self._layers)

    @property
    def bytes_per_slot(self) -> int:
        """Size of one sequence's states in all layers; 0 before the first forward pass."""
        return sum(layer.bytes_per_slot for layer in self._layers)

    def reserve(self, num_slots: int, slot_length: int, num_used: int) -> None:
        """Allocate slots, and keep the contents of the first ``num_used`` ones."""
        self.num_slots = self.slot_length = 0  # stays so if the allocation of a layer fails
        for layer in self._layers:
            layer.reserve(num_slots, slot_length, num_used)
        self.num_slots, self.slot_length = num_slots, slot_length

    def prefill(self, first_slot: int, columns: Sequence[range] = ()) -> None:
        """Let the next forward pass compute prompts, or some columns of them.

        Args:
            first_slot: the slot of the first prompt; the others follow.
            columns: the columns of each prompt; empty for whole prompts.
        """
        step = Prefill(first_slot, tuple(columns))
        for layer in self._layers:
            layer.begin(step)

    def decode(self, positions: Tensor, longest: int) -> None:
        """Let the next forward pass compute one token for each running sequence.

        Args:
            positions: position of each token in its sequence, by slot.
            longest: the highest position plus one.

        Shapes:
            positions: [sequences] int64.
        """
        step = Decode(torch.arange(len(positions), device=positions.device), positions, longest)
        for layer in self._layers:
            layer.begin(step)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` tokens of one slot into another."""
        for layer in self._layers:
            layer.copy(source, target, length)

    def read(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """Return copies of the keys and values of some columns, of all layers.

        Shapes:
            result: [heads, stop - start, head_dim] each.
        """
        return tuple(chain.from_iterable(layer.read(slot, start, stop) for layer in self._layers))

    def write(self, slot: int, start: int, states: Sequence[Tensor]) -> None:
        """Write what :meth:`read` returned, from a column on."""
        pairs = zip(states[::2], states[1::2], strict=True)
        for layer, pair in zip(self._layers, pairs, strict=True):
            layer.write(slot, start, pair)

    def clear(self, slot: int) -> None:
        """Set a slot that holds NaN to zero, because no mask would hide NaN from its next user."""
        for layer in self._layers:
            layer.clear(slot)


class _KeyValueLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The keys and values of one layer, [slots, heads, columns, head_dim] each."""

    is_sliding = False
    is_compileable = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes_per_token = 0
        self.bytes_per_slot = 0
        self._step: Prefill | Decode = Prefill(0, ())
        self._shape = (0, 0)

    def begin(self, step: Prefill | Decode) -> None:
        self._step = step

    def reserve(self, num_slots: int, slot_length: int, num_used: int) -> None:
        self._shape = (num_slots, slot_length)
        if self.is_initialized:
            self.keys = _resized(self.keys, num_slots, slot_length, num_used)
            self.values = _resized(self.values, num_slots, slot_length, num_used)

    def copy(self, source: int, target: int, length: int) -> None:
        for states in (self.keys, self.values):
            states[target, :, :length] = states[source, :, :length]

    def clear(self, slot: int) -> None:
        for states in (self.keys, self.values):
            states[slot].zero_()

    def read(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        return tuple(states[slot, :, start:stop].clone() for states in (self.keys, self.values))

    def write(self, slot: int, start: int, states: tuple[Tensor, ...]) -> None:
        for target, source in zip((self.keys, self.values), states, strict=True):
            target[slot, :, start : start + source.shape[1]] = source

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
        step = self._step
        if isinstance(step, Prefill):
            return self._update_prompts(step, key_states, value_states)
        self.keys[step.slots, :, step.positions] = key_states[:, :, 0]
        self.values[step.slots, :, step.positions] = value_states[:, :, 0]
        used_slots, columns = slice(len(step.slots)), slice(step.longest)
        return self.keys[used_slots, :, columns], self.values[used_slots, :, columns]

    def _update_prompts(
        self, step: Prefill, key_states: Tensor, value_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        slots = slice(step.first_slot, step.first_slot + len(key_states))
        if step.begins:
            longest = key_states.shape[2]
            self.keys[slots, :, :longest] = key_states
            self.values[slots, :, :longest] = value_states
            return key_states, value_states
        # Padding is not stored, because it could be beyond the end of a slot.
        for index, columns in enumerate(step.columns):
            slot, used = step.first_slot + index, slice(columns.start, columns.stop)
            self.keys[slot, :, used] = key_states[index, :, : len(columns)]
            self.values[slot, :, used] = value_states[index, :, : len(columns)]
        longest = max(columns.stop for columns in step.columns)
        return self.keys[slots, :, :longest], self.values[slots, :, :longest]

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
