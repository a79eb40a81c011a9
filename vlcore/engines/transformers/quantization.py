"""Weights in 8 or 4 bits: the linear layers of a loaded model, converted in place.

On a CPU, torch multiplies with the integers: see :mod:`int8_weight` and :mod:`int4_weight`. On
CUDA, torchao converts the layers to 8 bits, and converts the integers back for every matrix
product, which saves memory rather than time. Embeddings and norms are not changed.
``benchmarks/quantization.py`` measures memory, time and the effect of rounding on the logits.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from vlcore._utils.sizes import readable_size
from vlcore.engines.transformers.int4_weight import Int4Weight, block_size
from vlcore.engines.transformers.int8_weight import (
    Int8Weight,
    can_decode_int8,
    can_multiply_int8,
)
from vlcore.engines.transformers.linear_usage import find_linear_groups
from vlcore.engines.transformers.weight_packing import replace_layers
from vlcore.errors import EngineUnavailableError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

WEIGHTS = ("int8", "int4")
"""The formats that weights can be converted to."""


def quantize_weights(model: PreTrainedModel, weights: str) -> None:
    """Convert the linear layers of a model in place, one after another to limit peak memory.

    Weights outside of ``nn.Linear`` modules, such as stacked experts, are not converted.

    Args:
        model: a loaded transformers model, on its final device and in its final dtype.
        weights: format of the converted weights: ``"int8"``, or ``"int4"`` on a CPU, which leaves
            the output layer in 8 bits.

    Raises:
        OptionError: ``weights`` is not a known format.
        EngineUnavailableError: the format is not available on this device, torchao is needed and
            not installed, or the model has no linear layers that could be converted.
    """
    if weights not in WEIGHTS:
        raise OptionError(f"weights must be one of {', '.join(WEIGHTS)}; it is {weights!r}")
    output_layer: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    inner = (one for one in model.modules() if isinstance(one, nn.Linear))
    if not any(module is not output_layer for module in inner):
        raise EngineUnavailableError(
            f"weights={weights!r} converts linear layers, and {type(model).__name__} has none "
            "except its output layer"
        )
    is_cpu = model.device.type == "cpu"
    if weights == "int4" and not (is_cpu and block_size() and can_decode_int8()):
        where = "on this CPU, which needs AVX2 and torch for Linux" if is_cpu else "on a GPU"
        raise EngineUnavailableError(
            f"weights='int4' is not available {where}: use weights='int8', or a checkpoint in 4 "
            "bits (AWQ) with the TurboMind engine"
        )
    if is_cpu:
        if can_decode_int8():
            convert_for_cpu(model, weights)
            return
        logger.info(
            "torchao converts the weights, because this build of torch has no products with 8-bit "
            "integers for CPUs; they save memory rather than time"
        )
    convert_by_torchao(model)


def convert_for_cpu(model: PreTrainedModel, weights: str) -> None:
    """Convert the linear layers that a forward pass calls, and the output layer to 8 bits.

    A copy of the output layer is converted if its weight is shared with the embedding. In float32,
    it is not converted where the CPU has no exact products of 8-bit integers, because logits in
    bfloat16 would often be equal.

    Raises:
        EngineUnavailableError: a forward pass over three tokens failed.
    """
    try:
        groups = find_linear_groups(model)
    except Exception as error:
        raise EngineUnavailableError(
            f"the weights of {type(model).__name__} cannot be converted, because a forward pass "
            f"over three tokens failed: {type(error).__name__}: {error}"
        ) from error
    output_layer: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    output = [group for group in groups if group[0].module is output_layer]
    inner = [group for group in groups if group not in output]
    if model.dtype == torch.float32:
        replace_layers(output if can_multiply_int8() else (), partial(Int8Weight, is_exact=True))
    else:
        replace_layers(output, Int8Weight)
    replace_layers(inner, Int4Weight if weights == "int4" else Int8Weight)
    logger.info(
        "%d linear layers were converted to %s; %s of other weights stay as loaded",
        sum(map(len, groups)),
        weights,
        readable_size(sum(parameter.nbytes for parameter in model.parameters())),
    )


def convert_by_torchao(model: PreTrainedModel) -> None:
    """Convert all linear layers but the output layer.

    The output layer (``lm_head``) is not converted, because its weight is often shared with the
    embedding.

    Raises:
        EngineUnavailableError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise EngineUnavailableError(
            f"weights='int8' needs torchao, which cannot be imported ({error}): "
            "pip install 'vlcore[int8]'"
        ) from error
    output_layer: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]

    def is_converted(module: nn.Module, name: str) -> bool:  # noqa: ARG001
        return isinstance(module, nn.Linear) and module is not output_layer

    # This setting would change the global configuration of torch.compile.
    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=is_converted)
