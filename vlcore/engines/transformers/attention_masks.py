"""``AttentionMasks``: which tokens each token attends to, for each type of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlcore.errors import EngineUnavailableError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FULL, SLIDING = "full_attention", "sliding_attention"
STATES = frozenset({"linear_attention", "conv"})
"""Layers that attend to nothing, because they keep a state of all earlier tokens."""

Masks = Tensor | dict[str, Tensor | None]
"""The mask of all layers, or the mask of each type of layers."""


def layer_types(config: PretrainedConfig) -> list[str]:
    """Return the type of each layer.

    Raises:
        EngineUnavailableError: the engine does not support a type.
    """
    default = SLIDING if getattr(config, "sliding_window", None) else FULL
    stated = getattr(config, "layer_types", None)
    types = list(stated) if stated else [default] * int(config.num_hidden_layers)
    if unknown := sorted(set(types) - {FULL, SLIDING} - STATES):
        supported = ", ".join(sorted({FULL, SLIDING} | STATES))
        raise EngineUnavailableError(
            f"the transformers engine supports layers of type {supported}; this model has "
            f"{', '.join(unknown)}"
        )
    return types


class AttentionMasks:
    """Writes masks in the form that the model's attention reads: bool, where True is attended to,
    or numbers that are added to the scores ("eager").

    Args:
        config: configuration of the language model.
        dtype: dtype of the model.
        device: device of the model.

    Raises:
        EngineUnavailableError: the attention reads masks of another form.
    """

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._device = device
        self._types = tuple(dict.fromkeys(layer_types(config)))
        self._window: int | None = getattr(config, "sliding_window", None)
        implementation = getattr(config, "_attn_implementation", None) or "sdpa"
        if implementation not in ("sdpa", "eager"):
            raise EngineUnavailableError(
                "the transformers engine needs a model whose attention is 'sdpa' or 'eager'; that "
                f"of this one is {implementation!r}"
            )
        self._added_dtype = dtype if implementation == "eager" else None

    def prompt_masks(self, columns: Sequence[range], groups: Tensor | None) -> Masks | None:
        """Return the masks of prompts, or ``None`` for causal attention from the first token on.

        Args:
            columns: the columns of each prompt that are computed.
            groups: the group of each column of each prompt; tokens of one group attend to each
                other, and those with -1 to earlier ones only. ``None`` if all are -1.

        Shapes:
            groups: [prompts, last column + 1] int64.
            result: [prompts, 1, most columns, last column + 1].
        """
        if groups is None and not any(one.start for one in columns):
            return None
        # A padded query attends to what the last one does, so that its result is finite.
        longest = max(map(len, columns))
        queries = torch.tensor(
            [[min(one.start + i, one.stop - 1) for i in range(longest)] for one in columns]
        ).to(self._device)
        keys = torch.arange(max(one.stop for one in columns), device=self._device)
        distance = queries[:, :, None] - keys
        mask = distance >= 0
        if groups is not None:
            query_groups = groups.gather(1, queries)[:, :, None]
            mask = mask | ((query_groups == groups[:, None]) & (query_groups >= 0))
        masks = {FULL: mask}
        if self._window is not None:
            masks[SLIDING] = mask & (distance < self._window)
        return self._by_type({kind: mask[:, None] for kind, mask in masks.items()})

    def next_token_masks(self, positions: Tensor, longest: int) -> Masks | None:
        """Return the masks of one token of each sequence.

        Args:
            positions: position of each token in its sequence, which is its column in the cache.
            longest: the highest position plus one.

        Shapes:
            positions: [sequences] int64.
            result: [sequences, 1, 1, longest].
        """
        columns = torch.arange(longest, device=positions.device)
        masks = {FULL: columns <= positions[:, None]}
        if self._window is not None:
            masks[SLIDING] = masks[FULL] & (columns > positions[:, None] - self._window)
        return self._by_type({kind: mask[:, None, None] for kind, mask in masks.items()})

    def _by_type(self, masks: Mapping[str, Tensor]) -> Masks | None:
        if self._added_dtype is not None:
            lowest = torch.finfo(self._added_dtype).min
            masks = {
                kind: torch.zeros_like(mask, dtype=self._added_dtype).masked_fill(~mask, lowest)
                for kind, mask in masks.items()
            }
        by_type = {kind: masks.get(kind) for kind in self._types}
        return by_type if len(by_type) > 1 else by_type[self._types[0]]
