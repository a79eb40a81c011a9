"""Checkpoints and images that the tests of LLaVA's vision model share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import write_json
from image_rows import encode_images
from PIL import Image
from torch import Tensor
from weight_files import read_all, single_safetensors

import vlcore
from vlcore import (
    VisionModel,
)

TOWER = "model.vision_tower.vision_tower.vision_model."
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
ANYRES: dict[str, Any] = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": PINPOINTS,
}
SIZES = [(40, 30), (30, 70), (28, 28), (90, 20)]


def random_image(width: int, height: int) -> Image.Image:
    """Return an image of noise, which depends on its size only."""
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(noise.astype(np.uint8))


def encode(model: VisionModel, *images: Image.Image) -> list[Tensor]:
    """Encode images, and check that each has as many embeddings as its inputs state."""
    inputs = [model.preprocess(image) for image in images]
    rows = [image.rows for image in encode_images(model, inputs)]
    assert [image.num_rows for image in inputs] == [len(image) for image in rows]
    return rows


def load(directory: Path) -> VisionModel:
    """Load the vision model of a checkpoint in float32."""
    return vlcore.load_vision_model(directory)


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change a checkpoint's tensors in place."""
    tensors = read_all(directory)
    change(tensors)
    single_safetensors(directory, tensors)
    return directory


def set_json(path: Path, **values: Any) -> None:
    """Change values of a JSON object in a file; ``...`` removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    write_json(path, {key: value for key, value in content.items() if value is not ...})


def moved_tower(directory: Path) -> dict[str, Tensor]:
    """Take the vision encoder's tensors out of the checkpoint."""
    stored = read_all(directory)
    tower = {name: stored.pop(name) for name in [*stored] if name.startswith(TOWER)}
    single_safetensors(directory, stored)
    return {name.removeprefix(TOWER): tensor for name, tensor in tower.items()}
