"""A random CLIP vision model, and images for it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vlcore.clip import ClipConfig, ClipProcessor, ClipTower, ClipVisionModel

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
EDGE = 336


def random_model(
    shape: dict[str, Any], num_layers: int, hidden_size: int = 1024
) -> ClipVisionModel:
    """Create a vision encoder of the given shape and a projector, with random weights."""
    torch.manual_seed(0)
    config = ClipConfig(**shape, image_size=EDGE, patch_size=14)
    tower = ClipTower(config, num_layers).eval()
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.02)
    projector = nn.Linear(config.hidden_size, hidden_size).eval()
    processor = ClipProcessor.from_json({}, EDGE, "the defaults")
    return ClipVisionModel(tower, projector, processor, hidden_size=hidden_size)


def random_image(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Draw smooth shapes with some grain, which compress like a photograph."""
    draw = np.random.default_rng(seed)
    shapes = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(shapes.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = draw.integers(-12, 13, smooth.shape, dtype=np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image) -> bytes:
    """Return an image as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
