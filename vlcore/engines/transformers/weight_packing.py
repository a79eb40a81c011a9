"""Replaces the linear layers of a loaded model by those of :mod:`cpu_linear`, in place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vlcore.engines.transformers.cpu_linear import (
    CpuLinear,
    PackedWeight,
    Product,
    SharedProduct,
    can_pack,
)
from vlcore.engines.transformers.linear_usage import LinearLayer, find_linear_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
_can_pack = cache(can_pack)


def pack_weights(model: PreTrainedModel, *, expects_batches: bool = False) -> None:
    """Bring the weights of linear layers into the order in which the CPU reads them.

    In float32, only the output layer is converted, unless several sequences are expected to be
    computed together: for one token, MKL computes the other layers as fast as loaded, because
    reading them takes the time, and faster than oneDNN.

    Results differ from those of the layers as loaded only by the order of summation. A layer whose
    weight is also used elsewhere, such as an output layer that is tied to the embedding, gets a
    copy of it. If the model or the CPU does not allow it, the layers stay as they are, and
    the reason is logged.

    Args:
        model: a loaded transformers model, on the CPU and in its final dtype.
        expects_batches: whether steps with several sequences should be fastest.
    """
    if not _can_pack(model.dtype):
        logger.info(
            "the weights stay as loaded, because torch has no packed matrix products in %s for "
            "this CPU",
            str(model.dtype).removeprefix("torch."),
        )
        return
    try:
        groups = find_linear_groups(model)
    except Exception as error:
        logger.warning(
            "the weights of %s stay as loaded, which is slower, because a forward pass over three "
            "tokens failed: %s: %s",
            type(model).__name__,
            type(error).__name__,
            error,
        )
        return
    if model.dtype == torch.float32 and not expects_batches:
        output_layer: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        groups = [group for group in groups if group[0].module is output_layer]
    replace_layers(groups, PackedWeight)


def num_copied_bytes(model: PreTrainedModel) -> int:
    """Return the size of the weights that :func:`pack_weights` copies, on a model without values.

    That is the output layer, where its weight is also the embedding.
    """
    output_layer: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = cast("Tensor", model.get_input_embeddings().weight)
    is_tied = getattr(output_layer, "weight", None) is weight
    return weight.nbytes if is_tied and _can_pack(model.dtype) else 0


def replace_layers(
    groups: Collection[tuple[LinearLayer, ...]],
    product: Callable[[Tensor, Tensor | None], Product],
) -> None:
    """Replace linear layers, one group after another to limit peak memory.

    Args:
        groups: the layers; those of a group are always given the same input.
        product: creates a matrix product from a weight and a bias.
    """
    with torch.inference_mode():
        for group in groups:
            _replace(group, product)


def _replace(
    group: Sequence[LinearLayer], product: Callable[[Tensor, Tensor | None], Product]
) -> None:
    modules = [layer.module for layer in group]
    weight, bias = modules[0].weight, modules[0].bias
    if len(group) > 1:
        weight = nn.Parameter(torch.cat([module.weight for module in modules]))
        if bias is not None:
            bias = nn.Parameter(torch.cat([module.bias for module in modules]))
    shared = SharedProduct(
        product(weight.detach(), None if bias is None else bias.detach()),
        [module.out_features for module in modules],
    )
    for index, layer in enumerate(group):
        module = layer.module
        layer.replace(CpuLinear(shared, index, module.in_features, module.out_features))
