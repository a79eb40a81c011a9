"""LLaVA's vision model: CLIP encoder, projector, and the arrangement of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vl_plugin_llava.parts import TileSettings, read_settings
from vlcore import Checkpoint, ConfigError, ImageInputs
from vlcore.clip import ClipVisionModel, Size, best_canvas, cut_tiles, fit_on_canvas


@dataclass(frozen=True)
class TileLayout:
    """The arrangement of an image's tiles."""

    image_size: Size
    grid: Size
    """The columns and rows of tiles, without the base view."""


class LlavaVisionModel(ClipVisionModel):
    """Projected CLIP features of an image, in the order of the reference implementation.

    Source: the LLaVA reference implementation (``llava_arch.py``, ``mm_utils.py``) and, for
    llava-hf checkpoints, transformers' ``LlavaNext``.
    """

    def __init__(
        self, *parts: Any, tiles: TileSettings, newline: Tensor | None, **options: Any
    ) -> None:
        super().__init__(*parts, **options)
        self._tiles = tiles
        self._newline = newline

    @property
    def preprocess_settings(self) -> Any:
        """The settings of every CLIP model, and how images are cut into tiles."""
        return super().preprocess_settings, self._tiles

    def needed_size(self, size: Size) -> Size | None:
        """Return ``None`` with canvases: the number of embeddings depends on the exact size."""
        return None if self._tiles.canvases else super().needed_size(size)

    def views(self, image: Image.Image) -> tuple[Sequence[Image.Image], TileLayout | None]:
        """Return the whole image as a square, and its tiles if there are canvases."""
        if not self._tiles.canvases:
            return super().views(image)
        resample = self.processor.resample
        canvas = best_canvas(image.size, self._tiles.canvases)
        base = image.resize((self.processor.edge, self.processor.edge), resample)
        tiles = cut_tiles(fit_on_canvas(image, canvas, resample), self.edge)
        grid = (canvas[0] // self.edge, canvas[1] // self.edge)
        return [base, *tiles], TileLayout(image.size, grid)

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:
        """Arrange the embeddings: the base view, then the grid with its newline embeddings.

        Shapes:
            features: [tiles, T, hidden_size]; result: [k, hidden_size].
        """
        layout: TileLayout | None = inputs.layout
        if layout is None or self._tiles.merge == "flat":
            return super().assemble(features, inputs)
        base = features[0]
        columns, rows = layout.grid
        side = self.grid_size
        # [tiles, T, D] -> [D, rows * side, columns * side]
        grid = features[1:].reshape(rows, columns, side, side, -1).permute(4, 0, 2, 1, 3)
        grid = grid.flatten(3, 4).flatten(1, 2)
        if self._tiles.merge == "spatial_unpad":
            top, left = self._padding(layout)
            grid = grid[:, top : grid.shape[1] - top, left : grid.shape[2] - left]
            if self._newline is not None:
                newline = self._newline[:, None, None].expand(-1, grid.shape[1], 1)
                grid = torch.cat([grid, newline.to(grid)], dim=2)
        return torch.cat([base, grid.flatten(1).T])

    def count_rows(self, num_views: int, layout: TileLayout | None) -> int:
        """Return how many embeddings :meth:`assemble` will return."""
        if layout is None or self._tiles.merge != "spatial_unpad":
            return super().count_rows(num_views, layout)
        columns, rows = layout.grid
        top, left = self._padding(layout)
        height = rows * self.grid_size - 2 * top
        width = columns * self.grid_size - 2 * left
        return self.rows_per_view + height * (width + (self._newline is not None))

    def _padding(self, layout: TileLayout) -> tuple[int, int]:
        """Count the rows and columns of features on each side that hold only canvas."""
        width, height = layout.image_size
        columns, rows = (tiles * self.grid_size for tiles in layout.grid)
        if width / height > columns / rows:
            return (rows - self._whole(height * (columns / width))) // 2, 0
        return 0, (columns - self._whole(width * (rows / height))) // 2

    def _whole(self, length: float) -> int:
        return int(round(length, 7) if self._tiles.rounds_unpad else length)


def load_vision_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, **spread: Any
) -> LlavaVisionModel:
    """Load the vision model of a checkpoint in the original or in llava-hf's layout."""
    settings = read_settings(checkpoint)
    tiles = settings.tiles
    newline = None
    if tiles.canvases and tiles.merge != "flat":
        if settings.keep_class_token:
            raise ConfigError(f"{checkpoint.name}: tiles with a class token cannot be arranged")
        if tiles.merge == "spatial_unpad" and settings.newline_name:
            names = [settings.newline_name]
            newline = next(checkpoint.tensors(names, device=device, dtype=dtype))[1]
    return LlavaVisionModel.load(
        checkpoint,
        settings.source,
        settings.projector,
        settings.projector_prefixes,
        layer=settings.layer,
        device=device,
        dtype=dtype,
        **spread,
        hidden_size=settings.hidden_size,
        pads=settings.pads,
        keep_class_token=settings.keep_class_token,
        tiles=tiles,
        newline=newline,
    )
