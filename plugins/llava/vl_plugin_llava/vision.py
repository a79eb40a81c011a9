"""LLaVA's vision model: CLIP tower, projector, and rows laid out as tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vl_plugin_llava import images
from vl_plugin_llava.clip import ClipConfig, ClipTower
from vl_plugin_llava.images import ClipProcessor, Size
from vl_plugin_llava.parts import LlavaSettings, read_parts, tower_sources
from vlcore import (
    Checkpoint,
    ConfigError,
    ImageInputs,
    VisionModel,
    empty_weights,
)


@dataclass(frozen=True)
class TileLayout:
    """Where an image's tiles stand."""

    image_size: Size
    grid: Size
    """Columns and rows of tiles beside the base view; (0, 0) where there is only the base."""


class LlavaVisionModel(VisionModel):
    """CLIP features of an image, projected, in the release's order of rows.

    Source: the released LLaVA code (``llava_arch.py``, ``mm_utils.py``) and, for llava-hf
    checkpoints, transformers' ``LlavaNext``.
    """

    def __init__(
        self,
        tower: ClipTower,
        projector: nn.Module,
        newline: Tensor | None,
        settings: LlavaSettings,
        config: ClipConfig,
        processor: ClipProcessor,
        hidden_size: int,
    ) -> None:
        self.hidden_size = hidden_size
        self._tower = tower
        self._projector = projector
        self._newline = newline
        self._settings = settings
        self._grid_size = config.grid_size
        self._edge = config.image_size
        self._processor = processor

    def preprocess(self, image: Image.Image, **options: Any) -> ImageInputs:
        """Turn a picture into normalised tiles, the base view first.

        Shapes:
            pixels: [tiles, 3, S, S] float32.
        """
        image = super().preprocess(image, **options)
        image = image if image.mode == "RGB" else image.convert("RGB")
        views, grid = [image], (0, 0)
        if self._settings.aspect == "pad":
            views = [images.pad_to_square(image, self._processor.background)]
        elif self._settings.aspect == "anyres":
            resample = self._processor.resample
            canvas = images.best_canvas(image.size, self._settings.canvases)
            base = image.resize((self._processor.edge, self._processor.edge), resample)
            fitted = images.fit_on_canvas(image, canvas, resample)
            views = [base, *images.cut_tiles(fitted, self._edge)]
            grid = (canvas[0] // self._edge, canvas[1] // self._edge)
        layout = TileLayout(image.size, grid)
        pixels = torch.stack([self._processor(view) for view in views])
        return ImageInputs(pixels, layout, self._num_rows(layout))

    def tower(self, pixels: Tensor) -> Tensor:
        """Encode and project tiles.

        Shapes:
            pixels: [N, 3, S, S]; result: [N, T, hidden_size].
        """
        features = self._tower(pixels)
        projected: Tensor = self._projector(
            features if self._settings.keep_class_token else features[:, 1:]
        )
        return projected

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:
        """Lay out the tiles' rows: base view, then the grid with its newline rows.

        Shapes:
            features: [tiles, T, hidden_size]; result: [k, hidden_size].
        """
        layout: TileLayout = inputs.layout
        settings = self._settings
        if settings.aspect != "anyres" or settings.merge == "flat":
            return features.flatten(0, 1)
        base = features[0]
        columns, rows = layout.grid
        side = self._grid_size
        # [tiles, T, D] -> [D, rows * side, columns * side]
        grid = features[1:].reshape(rows, columns, side, side, -1).permute(4, 0, 2, 1, 3)
        grid = grid.flatten(3, 4).flatten(1, 2)
        if settings.merge == "spatial_unpad":
            top, left = self._padding(layout)
            grid = grid[:, top : grid.shape[1] - top, left : grid.shape[2] - left]
            if self._newline is not None:
                newline = self._newline[:, None, None].expand(-1, grid.shape[1], 1)
                grid = torch.cat([grid, newline.to(grid)], dim=2)
        return torch.cat([base, grid.flatten(1).T])

    def _padding(self, layout: TileLayout) -> tuple[int, int]:
        """Rows and columns of features that hold nothing but canvas, on either side."""
        width, height = layout.image_size
        columns, rows = (tiles * self._grid_size for tiles in layout.grid)
        if width / height > columns / rows:
            return (rows - self._whole(height * (columns / width))) // 2, 0
        return 0, (columns - self._whole(width * (rows / height))) // 2

    def _whole(self, length: float) -> int:
        return int(round(length, 7) if self._settings.rounds_unpad else length)

    def _num_rows(self, layout: TileLayout) -> int:
        settings = self._settings
        per_tile = self._grid_size**2 + settings.keep_class_token
        columns, rows = layout.grid
        if settings.merge != "spatial_unpad" or settings.aspect != "anyres":
            return per_tile * (1 + columns * rows)
        top, left = self._padding(layout)
        height = rows * self._grid_size - 2 * top
        width = columns * self._grid_size - 2 * left
        return per_tile + height * (width + (self._newline is not None))


def load_vision_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> LlavaVisionModel:
    """Load the vision model of a checkpoint in the original or in llava-hf's layout."""
    parts = read_parts(checkpoint)
    clip, settings = parts.clip, parts.settings
    num_layers = settings.select_layer
    if num_layers < 0:
        num_layers += clip.num_hidden_layers + 1
    if not 0 <= num_layers <= clip.num_hidden_layers:
        raise ConfigError(
            f"{checkpoint.name}: hidden state {settings.select_layer} of the tower is asked for, "
            f"which has {clip.num_hidden_layers} layers"
        )
    if settings.aspect == "anyres" and settings.merge != "flat" and settings.keep_class_token:
        raise ConfigError(f"{checkpoint.name}: tiles with a class token cannot be laid out")
    with empty_weights():
        tower = ClipTower(clip, num_layers)
    sources = tower_sources(parts, tower, num_layers)
    parts.tower_checkpoint.load_module(tower, sources, device=device, dtype=dtype)
    checkpoint.load_module(parts.projector, parts.projector_sources, device=device, dtype=dtype)
    newline = None
    if settings.aspect == "anyres" and settings.merge == "spatial_unpad" and parts.newline_name:
        newline = next(checkpoint.tensors([parts.newline_name], device=device, dtype=dtype))[1]
    model = LlavaVisionModel(
        tower.eval(), parts.projector.eval(), newline, settings, clip, parts.processor,
        parts.hidden_size,
    )  # fmt: skip
    places = (checkpoint, parts.tower_checkpoint)
    model.fingerprint = "+".join(dict.fromkeys(place.fingerprint for place in places))
    return model
