"""Qwen-VL's vision model: 256 embeddings for an image of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vl_plugin_qwen.tower import NUM_QUERIES, VisualConfig, VisualTower
from vlcore import Checkpoint, ConfigError, ImageInputs, VisionModel, empty_weights, renamed

TOWER_PREFIX = "transformer.visual."
_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)
_STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)


class QwenVisionModel(VisionModel):
    """The vision encoder of a checkpoint, with 256 embeddings for every image.

    Source: ``visual.py`` of the Qwen-VL reference implementation.
    """

    def __init__(self, tower: VisualTower, config: VisualConfig) -> None:
        self.hidden_size = config.output_dim
        self._image_size = config.image_size
        self._tower = tower

    def needed_size(self, size: tuple[int, int]) -> tuple[int, int]:  # noqa: ARG002
        """Return the size of the square, for an image of any size."""
        return self._image_size, self._image_size

    def preprocess(self, image: Image.Image, **options: Any) -> ImageInputs:
        """Resize an image of any shape to a square, and normalise it.

        Shapes:
            pixels: [1, 3, S, S] float32.
        """
        image = super().preprocess(image, **options)
        return ImageInputs(to_pixels(image, self._image_size)[None], num_rows=NUM_QUERIES)

    def tower(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Shapes:
            pixels: [N, 3, S, S]; result: [N, 256, hidden_size].
        """
        rows: Tensor = self._tower(pixels)
        return rows

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:  # noqa: ARG002
        """Return the embeddings of the single view.

        Shapes:
            features: [1, 256, hidden_size]; result: [256, hidden_size].
        """
        return features[0]


def to_pixels(image: Image.Image, edge: int) -> Tensor:
    """Resize an image of any shape to a square, and normalise it.

    Shapes:
        result: [3, edge, edge] float32.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    resized = image.resize((edge, edge), Image.Resampling.BICUBIC)
    values = (np.asarray(resized, dtype=np.float32) / 255 - _MEAN) / _STD
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def read_visual_config(checkpoint: Checkpoint) -> VisualConfig:
    """Read the sizes of the vision encoder.

    Raises:
        ConfigError: sizes are missing, or inconsistent with each other or the language model.
    """
    config: Mapping[str, Any] = checkpoint.config
    where = f"visual in config.json of {checkpoint.name}"
    visual = VisualConfig.from_json(config["visual"], where)
    if config.get("hidden_size", visual.output_dim) != visual.output_dim:
        raise ConfigError(
            f"{where} has output_dim {visual.output_dim}; the language model's hidden_size is "
            f"{config['hidden_size']!r}"
        )
    return visual


def load_tower(
    checkpoint: Checkpoint, config: VisualConfig, device: torch.device, dtype: torch.dtype
) -> VisualTower:
    """Load only the vision encoder.

    Raises:
        TensorError: tensors are missing, unexpected or misshapen.
    """
    with empty_weights():
        tower = VisualTower(config)
    sources = renamed(checkpoint, {TOWER_PREFIX: ""})
    checkpoint.load_module(tower, sources, device=device, dtype=dtype)
    tower.stretch_positions()
    return tower.eval()


def load_vision_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> QwenVisionModel:
    """Load the vision model of a checkpoint."""
    config = read_visual_config(checkpoint)
    return QwenVisionModel(load_tower(checkpoint, config, device, dtype), config)
