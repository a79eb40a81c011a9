"""8-bit weights: the linear layers of a loaded model, converted in place by torchao.

Each row of a layer's weight is stored as 8-bit integers with one float32 scale. Activations,
embeddings, norms and the output layer are not changed. On a CPU this saves memory rather than time,
because the integers are converted back for every matrix product. ``benchmarks/int8.py`` measures
memory, time and the effect of rounding on the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vlcore.errors import EngineUnavailableError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = ("int8",)
"""The formats that weights can be converted to."""


def quantize_weights(model: PreTrainedModel, weights: str) -> None:
    """Convert the linear layers of a model in place, one after another to limit peak memory.

    The output layer (``lm_head``) is not converted, because its rounding errors would go directly
    into the logits, and because its weight is often shared with the embedding. Weights outside of
    ``nn.Linear`` modules, such as stacked experts, are not converted either.

    Args:
        model: a loaded transformers model, on its final device and in its final dtype.
        weights: format of the converted weights: ``"int8"``.

    Raises:
        OptionError: ``weights`` is not a known format.
        EngineUnavailableError: torchao is not installed, or the model has no linear layers that
            could be converted.
    """
    if weights not in WEIGHTS:
        raise OptionError(f"weights must be one of {', '.join(WEIGHTS)}; it is {weights!r}")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise EngineUnavailableError(
            f"weights={weights!r} needs torchao, which cannot be imported ({error}): "
            "pip install 'vlcore[int8]'"
        ) from error
    output_layer: object = model.get_output_embeddings()  # type: ignore[no-untyped-call]

    def is_converted(module: nn.Module, name: str) -> bool:  # noqa: ARG001
        return isinstance(module, nn.Linear) and module is not output_layer

    if not any(is_converted(module, "") for module in model.modules()):
        raise EngineUnavailableError(
            f"weights={weights!r} converts linear layers, and {type(model).__name__} has none "
            "except its output layer"
        )
    # This setting would change the global configuration of torch.compile.
    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=is_converted)
