"""``StateLayer``: a layer that keeps a state of all earlier tokens instead of keys and values."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from transformers import cache_utils

from vlcore.engines.transformers.slot_layer import Decode, Prefill, SlotLayer
from vlcore.errors import EngineUnavailableError

_Base: Any = getattr(cache_utils, "LinearAttentionCacheLayerMixin", object)


def make_state_layer() -> SlotLayer:
    """Create a layer.

    Raises:
        EngineUnavailableError: this release of transformers keeps states in another way.
    """
    if "number_of_states" not in inspect.signature(_Base.__init__).parameters:
        raise EngineUnavailableError(
            "layers with linear attention or convolutions need a newer release of transformers: "
            "pip install --upgrade transformers"
        )
    return StateLayer()


class StateLayer(_Base):  # type: ignore[misc]
    """The states of one layer, [slots, …] each: of a convolution, of a recurrence, or both.

    transformers reads and writes ``conv_states`` and ``recurrent_states``. A prompt begins without
    them; in a decoding step, they are those of the running sequences, which it changes in place.
    Prompts that are computed together must have the same length, because padding would change
    their states.
    """

    bytes_per_token = 0

    def __init__(self) -> None:
        super().__init__()
        self._num_slots = 0
        self._step: Prefill | Decode = Prefill(0, ())
        self._slots: dict[str, Tensor] = {}
        """The states of all slots, by kind."""

    @property
    def bytes_per_slot(self) -> int:
        """Size of the states of a sequence; 0 before the first forward pass."""
        return sum(states[0].nbytes for states in self._slots.values())

    def begin(self, step: Prefill | Decode) -> None:
        """Prepare for the next forward pass."""
        self._step = step
        for kind, states in (("conv", self.conv_states), ("recurrent", self.recurrent_states)):
            states[0] = None
            if isinstance(step, Decode) and kind in self._slots:
                states[0] = self._slots[kind][: len(step.slots)]
        self.has_previous_state[0] = isinstance(step, Decode)

    def reserve(self, num_slots: int, slot_length: int, num_used: int) -> None:  # noqa: ARG002
        """Allocate slots, and keep the contents of the first ``num_used`` ones."""
        self._num_slots = num_slots
        for kind, states in self._slots.items():
            resized = states.new_zeros(num_slots, *states.shape[1:])
            resized[:num_used] = states[:num_used]
            self._slots[kind] = resized

    def copy(self, source: int, target: int, length: int) -> None:  # noqa: ARG002
        """Copy the state of one slot into another."""
        for states in self._slots.values():
            states[target] = states[source]

    def clear(self, slot: int) -> None:
        """Set a slot to zero."""
        for states in self._slots.values():
            states[slot].zero_()

    def read(self, slot: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """Raise, because the state of a part of a sequence is not kept."""
        raise NotImplementedError(f"no state of slot {slot} is kept for columns {start}..{stop}")

    def write(self, slot: int, start: int, states: tuple[Tensor, ...]) -> None:
        """Raise, like :meth:`read`."""
        raise NotImplementedError(f"no state of slot {slot} is kept for column {start}: {states}")

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Do nothing, because states are allocated when the first prompt is computed."""

    def update_conv_state(
        self,
        conv_states: Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> Tensor:
        """Store the last inputs of a prompt's convolution, and return all of them.

        Shapes:
            conv_states: [prompts, channels, tokens].
            result: [prompts, channels, at least conv_kernel_size].
        """
        self._check_index(state_idx)
        size = conv_states.shape[-1] if conv_kernel_size is None else conv_kernel_size
        conv_states = pad(conv_states, (max(0, size - conv_states.shape[-1]), 0))
        self._store("conv", conv_states[..., -size:])
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, **_: Any
    ) -> Tensor:
        """Store the state after a step."""
        self._check_index(state_idx)
        self._store("recurrent", recurrent_states)
        return recurrent_states

    def _store(self, kind: str, states: Tensor) -> None:
        if kind not in self._slots:
            self._slots[kind] = states.new_zeros(self._num_slots, *states.shape[1:])
        first_slot = self._step.first_slot if isinstance(self._step, Prefill) else 0
        self._slots[kind][first_slot : first_slot + len(states)] = states

    def _check_index(self, state_idx: int) -> None:
        if state_idx:
            raise EngineUnavailableError(
                "the transformers engine supports one state of a convolution and one of a "
                "recurrence in each layer; this model has more"
            )
