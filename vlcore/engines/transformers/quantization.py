"""8-bit weights: a loaded model's linear layers, converted in place by torchao.

Each row of a layer's weight becomes 8-bit integers and one float32 scale. Activations, embedding,
norms and the output layer stay as they are. On a CPU that saves memory rather than time: the
integers are converted back for every product. ``benchmarks/int8.py`` measures memory, time and
what the rounding does to the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vlcore.errors import EngineUnavailableError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = ("int8",)
"""What weights can be converted to."""


def quantize_weights(model: PreTrainedModel, weights: str) -> None:
    """Convert a model's linear layers in place, one after another, so that memory falls meanwhile.

    The output layer (``lm_head``) is left out, as its rounding would go straight into the logits,
    and often its weight is the embedding's. Weights that are not in an ``nn.Linear``, such as
    stacked experts, are left out too.

    Args:
        model: a loaded transformers model, on the device and in the dtype that it runs in.
        weights: ``"int8"``.

    Raises:
        OptionError: ``weights`` is something else.
        EngineUnavailableError: torchao is not installed, or the model has no such layers.
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
            "besides its output layer"
        )
    # The setting is for torch.compile, and global.
    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=is_converted)
