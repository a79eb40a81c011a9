"""Runs a model on the meta device, where tensors have shapes and no values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vlcore.engines.transformers.batch import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

META = torch.device("meta")


def measure_cache(model: PreTrainedModel) -> Batch:
    """Return a batch whose sizes in bytes are known, without weights.

    The model is changed, so that no value decides what it computes, as far as transformers allows
    that. The shapes of its results stay the same.

    Raises:
        EngineUnavailableError: the engine does not support the model.
        Exception: the model reads values all the same.
    """
    for module in model.modules():
        rope_type: object = getattr(module, "rope_type", None)
        # "dynamic" and "longrope" read the highest position.
        if isinstance(rope_type, str):
            module.rope_type = "default"  # type: ignore[assignment]
        elif isinstance(rope_type, dict):
            module.rope_type = dict.fromkeys(rope_type, "default")  # type: ignore[assignment]
    set_experts: Any = getattr(model, "set_experts_implementation", None)
    if set_experts is not None:  # the others read which experts are chosen, or refuse float32
        set_experts("batched_mm")
    batch = Batch(model, META, 1)
    with torch.inference_mode():
        batch.measure_cache()
    return batch
