"""Yi-VL's vision model: a CLIP encoder, and a projector whose linear layers have norms."""

from __future__ import annotations

from typing import Any

import torch

from vlcore import Checkpoint
from vlcore.clip import ClipVisionModel, mlp_projector
from vlcore.flat_layout import PROJECTOR_PREFIX, FlatVisionPart


def load_vision_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, **spread: Any
) -> ClipVisionModel:
    """Load the vision model.

    Source: the Yi-VL reference implementation (``clip_encoder.py``,
    ``multimodal_projector/builder.py``).
    """
    part = FlatVisionPart.read(checkpoint)
    kind: str = checkpoint.config["mm_projector_type"]
    depth = int(kind.removeprefix("mlp").removesuffix("x_gelu_Norm"))
    return ClipVisionModel.load(
        checkpoint,
        part.source,
        mlp_projector(part.source.config.hidden_size, part.hidden_size, depth, norms=True),
        {PROJECTOR_PREFIX: ""},
        layer=part.layer,
        device=device,
        dtype=dtype,
        **spread,
        hidden_size=part.hidden_size,
        pads=part.aspect == "pad",
        keep_class_token=part.keep_class_token,
    )
