"""Images through a vision model, for tests of plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlcore import ImageRows, VisionModel


def encode_images(model: VisionModel, inputs: Sequence[Any]) -> list[ImageRows]:
    """Encode preprocessed images in one forward, and check shapes and values of the result."""
    with torch.inference_mode():
        results = model.forward(inputs)
    encoded = [one if isinstance(one, ImageRows) else ImageRows(one) for one in results]
    assert len(encoded) == len(inputs)
    for image in encoded:
        assert image.rows.ndim == 2
        assert image.rows.shape[1] == model.hidden_size
        assert torch.isfinite(image.rows).all()
    return encoded
