"""``AttentionMasks``: which tokens each token attends to, for each type of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlcore.engines.transformers.cache_layer import AttentionCall
from vlcore.engines.transformers.strided_rows import StridedRows
from vlcore.errors import EngineUnavailableError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FULL, SLIDING = "full_attention", "sliding_attention"
STATES = frozenset({"linear_attention", "conv"})
"""Layers that attend to nothing, because they keep a state of all earlier tokens."""

AttentionCalls = Mapping[str, Sequence[AttentionCall]]
"""How attention is computed, by the type of the layer."""


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
    """Writes masks in the form that the model's attention reads.

    That is bool, where True is attended to, or numbers that are added to the scores: for attention
    that is "eager", and for next tokens, because torch would convert a mask in each layer.

    Args:
        config: configuration of the language model.
        dtype: dtype of the model.
        device: device of the model.
        is_eager: whether the attention is "eager".
    """

    def __init__(
        self, config: PretrainedConfig, dtype: torch.dtype, device: torch.device, *, is_eager: bool
    ) -> None:
        self._device = device
        self._types = tuple(dict.fromkeys(layer_types(config)))
        window: int | None = getattr(config, "sliding_window", None)
        self._windows = {
            kind: window if kind == SLIDING else None for kind in self._types if kind not in STATES
        }
        """How many columns, up to its own, a token attends to, by the type of the layer."""
        self._dtype = dtype
        self._is_eager = is_eager
        # transformers passes on a mask with four dimensions, and writes none of its own.
        one = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
        by_type = {kind: None if kind in STATES else one for kind in self._types}
        self.placeholder = by_type if len(by_type) > 1 else by_type[self._types[0]]
        """What the model is given as its mask, because the real ones are in the calls."""

    def whole_prompts(self, lengths: Sequence[int], groups: Tensor | None) -> AttentionCalls:
        """Return the call for prompts that are computed from their first token on.

        Args:
            lengths: the lengths of the prompts.
            groups: the group of each column of each prompt; tokens of one group attend to each
                other, and those with -1 to earlier ones only. ``None`` if all are -1.

        Shapes:
            groups: [prompts, longest] int64.
        """
        rows, longest = slice(len(lengths)), max(lengths)
        calls = {}
        for kind, window in self._windows.items():
            is_causal = groups is None and (window is None or longest <= window)
            mask = None
            if not is_causal or self._is_eager:
                # A padded query attends to what the last one does, so that its result is finite.
                queries = torch.arange(longest).expand(len(lengths), -1)
                queries = queries.minimum(torch.tensor(lengths)[:, None] - 1)
                mask = self._mask(queries.to(self._device), 0, longest, groups, window)
            calls[kind] = (AttentionCall(slice(0, rows.stop), 0, 0, longest, mask),)
        return calls

    def prompt_chunks(
        self, starts: Sequence[int], columns: Sequence[range], groups: Tensor | None
    ) -> AttentionCalls:
        """Return a call for each prompt of which some columns are computed.

        Args:
            starts: the first column of each prompt's region.
            columns: the columns of each prompt that are computed, from the region's first one on.
            groups: as in :meth:`whole_prompts`, up to the last computed column.
        """
        longest = max(map(len, columns))
        calls: dict[str, list[AttentionCall]] = {kind: [] for kind in self._windows}
        for row, (start, own) in enumerate(zip(starts, columns, strict=True)):
            queries = torch.arange(own.start, own.start + longest).clamp_(max=own.stop - 1)
            queries = queries[None].to(self._device)
            own_groups = None if groups is None else groups[row : row + 1]
            for kind, window in self._windows.items():
                first = 0 if window is None else max(0, own.start - window + 1)
                mask = self._mask(queries, first, own.stop, own_groups, window)
                rows, length = slice(row, row + 1), own.stop - first
                calls[kind].append(AttentionCall(rows, start + first, 0, length, mask))
        return calls

    def next_tokens(self, rows: Sequence[StridedRows], lengths: Sequence[int]) -> AttentionCalls:
        """Return a call for each group of sequences, of which one token is computed.

        Args:
            rows: the groups.
            lengths: the length of each sequence, in tokens.
        """
        calls: dict[str, list[AttentionCall]] = {kind: [] for kind in self._windows}
        for group in rows:
            own = lengths[group.rows]
            shortest, longest = min(own), max(own)
            for kind, window in self._windows.items():
                first = 0 if window is None else max(0, shortest - window)
                mask = None
                if shortest < longest:
                    queries = torch.tensor(own, device=self._device)[:, None] - 1
                    mask = self._mask(queries, first, longest, None, window)
                    mask = mask if self._is_eager else self._added(mask)
                start, length = group.start + first, longest - first
                calls[kind].append(AttentionCall(group.rows, start, group.stride, length, mask))
        return calls

    def _mask(
        self, queries: Tensor, first: int, stop: int, groups: Tensor | None, window: int | None
    ) -> Tensor:
        """Return which columns, from the first one on, each query attends to.

        Shapes:
            queries: [sequences, queries] int64, their columns.
            result: [sequences, 1, queries, stop - first].
        """
        distance = queries[:, :, None] - torch.arange(first, stop, device=self._device)
        mask = distance >= 0
        if groups is not None:
            query_groups = groups.gather(1, queries)[:, :, None]
            same = query_groups == groups[:, None, first:stop]
            mask = mask | (same & (query_groups >= 0))
        if window is not None:
            mask = mask & (distance < window)
        mask = mask[:, None]
        return self._added(mask) if self._is_eager else mask

    def _added(self, mask: Tensor) -> Tensor:
        lowest = torch.finfo(self._dtype).min if self._is_eager else -torch.inf
        return torch.zeros_like(mask, dtype=self._dtype).masked_fill(~mask, lowest)
