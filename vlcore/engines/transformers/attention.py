"""``use_ragged_attention``: lets a model attend to the columns of a ``KVCache``.

transformers looks up the attention of a model by name. The functions registered here compute the
attention of each sequence, or of several that can be read as one tensor, with the function that the
model would have used otherwise. With any other cache, they are that function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from vlcore.engines.transformers.kv_cache import KeyValueLayer
from vlcore.engines.transformers.operators import decode_attention
from vlcore.errors import EngineUnavailableError

Attention: TypeAlias = Callable[..., tuple[Tensor, Tensor | None]]

_PREFIX = "vlcore_"
_CHANGES = frozenset({"position_bias", "softcap"})
"""Options of attention that torch's own does not have."""
COMPILED = "vlcore_attention"
"""The attribute of a module with the handle of the operator that computes its attention in compiled
code."""


@dataclass(frozen=True)
class ObservedAttention:
    """How a model computed the attention of a layer."""

    attention: Attention
    module: nn.Module
    options: dict[str, Any]
    layer: KeyValueLayer
    is_unchanged: bool
    """Whether the keys and values were those of the cache."""


_observed: ContextVar[list[ObservedAttention] | None] = ContextVar("_observed", default=None)


@contextmanager
def observed_attention() -> Iterator[list[ObservedAttention]]:
    """Collect how the forward passes of this thread compute attention."""
    observed: list[ObservedAttention] = []
    token = _observed.set(observed)
    try:
        yield observed
    finally:
        _observed.reset(token)


def attention_name(config: PretrainedConfig) -> str:
    """Return ``"sdpa"`` or ``"eager"``, whichever a model uses.

    Raises:
        EngineUnavailableError: it uses another attention.
    """
    name = getattr(config, "_attn_implementation", None) or "sdpa"
    name = str(name).removeprefix(_PREFIX)
    if name not in ("sdpa", "eager"):
        raise EngineUnavailableError(
            "the transformers engine needs a model whose attention is 'sdpa' or 'eager'; that of "
            f"this one is {name!r}"
        )
    return name


def use_ragged_attention(model: PreTrainedModel) -> None:
    """Let a model attend to a ``KVCache``, with the attention that it uses already.

    Raises:
        EngineUnavailableError: it uses another attention than ``"sdpa"`` or ``"eager"``.
    """
    name = attention_name(model.config.get_text_config())
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) == name:
            cast("Any", config)._attn_implementation = _PREFIX + name


def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    return _attend(sdpa_attention_forward, module, query, key, value, attention_mask, options)


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    # Each model of transformers has its own, in the module of its attention.
    defined_in = sys.modules[type(module).__module__]
    attention: Attention = cast("Any", defined_in).eager_attention_forward
    return _attend(attention, module, query, key, value, attention_mask, options)


def _attend(
    attention: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Compute attention call by call, if the keys are those of a ``KVCache``.

    Shapes:
        query: [sequences, heads, tokens, head_dim].
        result: [sequences, tokens, heads, head_dim].
    """
    if torch.compiler.is_compiling():
        return decode_attention(query, key, value, getattr(module, COMPILED)), None
    layer: KeyValueLayer | None = getattr(key, "cache_layer", None)
    if layer is None:
        return attention(module, query, key, value, attention_mask, **options)
    if attention_mask is None or attention_mask.numel() > 1:
        raise EngineUnavailableError(
            f"the transformers engine cannot run {type(module).__name__}, because it masks tokens "
            "in a way of its own"
        )
    layer.is_read = True
    layer.is_causal = bool(getattr(module, "is_causal", True))
    if (observed := _observed.get()) is not None:
        is_unchanged = layer.holds(key, value)
        observed.append(ObservedAttention(attention, module, options, layer, is_unchanged))
    return compute_attention(attention, module, layer, query, key, value, options), None


def compute_attention(
    attention: Attention,
    module: nn.Module,
    layer: KeyValueLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    options: dict[str, Any],
) -> Tensor:
    """Compute the attention of a layer in the calls of the current forward pass.

    Shapes:
        query: [sequences, heads, tokens, head_dim].
        result: [sequences, tokens, heads, head_dim].
    """
    key, value = layer.plain(key), layer.plain(value)
    if attention is sdpa_attention_forward and not _CHANGES.intersection(options):
        if query.shape[2] == 1:
            attention = _one_token_sdpa
        elif query.device.type == "cpu" and layer.calls[0].mask is not None:
            attention = _cpu_sdpa
    if len(layer.calls) == 1:
        call = layer.calls[0]
        keys, values = layer.attended(call, key), layer.attended(call, value)
        return attention(module, query, keys, values, call.mask, **options)[0]
    outputs = []
    for call in layer.calls:
        keys, values = layer.attended(call, key), layer.attended(call, value)
        output, _ = attention(module, query[call.rows], keys, values, call.mask, **options)
        outputs.append(output)
    return torch.cat(outputs)


def _one_token_sdpa(
    module: nn.Module,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one token of each sequence.

    The query heads that share a key are its queries, which reads each key once.

    Shapes:
        query: [sequences, heads, 1, head_dim].
        key, value: [sequences, key heads, columns, head_dim].
        result: [sequences, 1, heads, head_dim].
    """
    num_sequences, num_heads, _one, head_dim = query.shape
    num_keys = key.shape[1]
    packed = query.reshape(num_sequences, num_keys, num_heads // num_keys, head_dim)
    if attention_mask is not None and attention_mask.dtype != query.dtype:
        attention_mask = attention_mask.to(query.dtype)
    output = scaled_dot_product_attention(packed, key, value, attention_mask, scale=scaling)
    return output.reshape(num_sequences, 1, num_heads, value.shape[3]), None


def _cpu_sdpa(
    module: nn.Module,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention with a mask, without copies of the keys for each query head.

    transformers makes these copies, which take longest where few tokens attend to many. The results
    are equal.

    Shapes:
        query: [sequences, heads, tokens, head_dim].
        key, value: [sequences, key heads, columns, head_dim].
        attention_mask: [sequences, 1, tokens, columns].
        result: [sequences, tokens, heads, head_dim].
    """
    is_grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(
        query, key, value, attention_mask, scale=scaling, enable_gqa=is_grouped
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_PREFIX + "sdpa", _sdpa)
AttentionInterface.register(_PREFIX + "eager", _eager)
AttentionMaskInterface.register(_PREFIX + "sdpa", sdpa_mask)
AttentionMaskInterface.register(_PREFIX + "eager", eager_mask)
