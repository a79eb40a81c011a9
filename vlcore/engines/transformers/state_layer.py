"""``StateLayer``: a layer that keeps a state of all earlier tokens instead of keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import cache_utils

from vlcore.engines.transformers.cache_layer import CacheLayer, Decode, Prefill
from vlcore.errors import EngineUnavailableError

_Base: Any = getattr(cache_utils, "LinearAttentionCacheLayerMixin", object)


def make_state_layer() -> CacheLayer:
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
    """The states of one layer, [sequences, …] each: of a convolution, of a recurrence, or both.

    transformers reads and writes ``conv_states`` and ``recurrent_states``. A prompt begins without
    them; in a decoding step, they are those of the running sequences, which it changes in place.
    Prompts that are computed together must have the same length, because padding would change
    their states.
    """

    bytes_per_token = 0
    bytes_per_sequence = 0

    def __init__(self) -> None:
        super().__init__()
        self._is_decoding = False
        self._running: dict[str, Tensor] = {}
        """The states of the running sequences, by kind."""
        self._prompts: dict[str, Tensor] = {}
        """The states after the prompts that were computed last, by kind."""

    def begin(self, step: Prefill | Decode) -> None:
        """Prepare for the next forward pass."""
        self._is_decoding = isinstance(step, Decode)
        for kind, states in (("conv", self.conv_states), ("recurrent", self.recurrent_states)):
            states[0] = self._running.get(kind) if self._is_decoding else None
        self.has_previous_state[0] = self._is_decoding

    def arrange(self, rows: Sequence[int]) -> None:
        """Set the order of the running sequences, and add prompts to them."""
        prompts, self._prompts = self._prompts, {}
        for kind in self._running.keys() | prompts.keys():
            parts = [parts[kind] for parts in (self._running, prompts) if kind in parts]
            index = torch.tensor(rows, dtype=torch.long, device=parts[0].device)
            self._running[kind] = torch.cat(parts).index_select(0, index)

    def reserve(self, num_columns: int) -> None:
        """Do nothing, because states have no columns."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Do nothing, like :meth:`reserve`."""

    def clear(self, start: int, length: int) -> None:
        """Do nothing, like :meth:`reserve`."""

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Do nothing, because states are stored when the first prompt is computed."""

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
        if self._is_decoding:
            self._running[kind].copy_(states)
            return
        self._prompts[kind] = states
        self.bytes_per_sequence = sum(one[0].nbytes for one in self._prompts.values())

    def _check_index(self, state_idx: int) -> None:
        if state_idx:
            raise EngineUnavailableError(
                "the transformers engine supports one state of a convolution and one of a "
                "recurrence in each layer; this model has more"
            )
