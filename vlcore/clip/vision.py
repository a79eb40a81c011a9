"""A vision model of the common kind: a CLIP tower and a projector over views of a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vlcore._utils.device_map import DeviceMap, MaxMemory
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.clip.images import ClipProcessor, pad_to_square
from vlcore.clip.source import ClipSource, module_sources
from vlcore.clip.tower import ClipTower
from vlcore.vision.model import ImageInputs, VisionModel


class ClipVisionModel(VisionModel):
    """A hidden state of a CLIP tower, projected: one row for each patch of a square view.

    A subclass that shows the tower several views of a picture overrides :meth:`views` with
    :meth:`needed_size`, and :meth:`count_rows` with :meth:`assemble` where their rows are not
    simply put in a line.

    Args:
        tower: encodes a view.
        projector: takes a patch from the tower's width to ``hidden_size``.
        processor: turns a view into pixels.
        hidden_size: width of every row.
        pads: pad a picture to a square instead of cutting the middle out.
        keep_class_token: give the class token a row too, before the patches.
    """

    _device: torch.device | None = None

    def __init__(
        self,
        tower: ClipTower,
        projector: nn.Module,
        processor: ClipProcessor,
        *,
        hidden_size: int,
        pads: bool = False,
        keep_class_token: bool = False,
    ) -> None:
        self.hidden_size = hidden_size
        self.processor = processor
        self.edge = tower.config.image_size
        """Pixels along each side of a view."""
        self.grid_size = tower.config.grid_size
        """Patches along each side of a view."""
        self.rows_per_view = self.grid_size**2 + keep_class_token
        self._tower = tower
        self._projector = projector
        self._pads = pads
        self._first = 0 if keep_class_token else 1

    @property
    def device(self) -> torch.device:
        """Where pixels go and rows come from, also if the tower is spread."""
        return self._device or super().device

    @property
    def preprocess_settings(self) -> Any:
        """The processor, and whether pictures are padded."""
        return self.processor, self._pads

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        source: ClipSource,
        projector: nn.Module,
        prefixes: Mapping[str, str],
        *,
        layer: int,
        device: torch.device,
        dtype: torch.dtype,
        device_map: DeviceMap | None = None,
        max_memory: MaxMemory | None = None,
        **options: Any,
    ) -> Self:
        """Load tower and projector.

        Args:
            checkpoint: holds the projector.
            source: the tower.
            projector: built, and not filled yet.
            prefixes: the projector's prefix for each prefix of the checkpoint.
            layer: the tower's hidden state; 0 is the embeddings, negative counts from the end.
            device: where the weights go.
            dtype: of weights and rows.
            device_map: spreads the tower over several devices.
            max_memory: what it may use of each.
            options: the other arguments of the class.

        Raises:
            ConfigError: the tower has no such layer.
            TensorError: tensors are missing, unexpected or misshapen.
        """
        tower = source.load_tower(
            layer, device=device, dtype=dtype, device_map=device_map, max_memory=max_memory
        )
        sources = module_sources(projector, checkpoint, prefixes)
        checkpoint.load_module(projector, sources, device=device, dtype=dtype)
        model = cls(tower, projector.eval(), source.processor, **options)
        if device_map is not None:
            model.is_spread = True
            model._device = device
        places = (checkpoint, source.checkpoint)
        model.fingerprint = "+".join(dict.fromkeys(place.fingerprint for place in places))
        return model

    def needed_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Say to what size the only view is resized, without the padding."""
        if not self._pads:
            return self.processor.resized(size)
        edge = max(size)
        width, height = self.processor.resized((edge, edge))
        return math.ceil(size[0] * width / edge), math.ceil(size[1] * height / edge)

    def preprocess(self, image: Image.Image, **options: Any) -> ImageInputs:
        """Turn a picture into the normalised pixels of its views.

        Shapes:
            pixels: [views, 3, S, S] float32.
        """
        image = super().preprocess(image, **options)
        views, layout = self.views(image if image.mode == "RGB" else image.convert("RGB"))
        # NumPy copies in this thread of the pool; torch would take threads of its own for it.
        pixels = np.stack([self.processor(view).numpy() for view in views])
        return ImageInputs(torch.from_numpy(pixels), layout, self.count_rows(len(views), layout))

    def views(self, image: Image.Image) -> tuple[Sequence[Image.Image], Any]:
        """Give the views of an RGB picture that the tower sees, and their layout.

        The processor resizes each to the tower's square.
        """
        return [pad_to_square(image, self.processor.background) if self._pads else image], None

    def count_rows(self, num_views: int, layout: Any) -> int:  # noqa: ARG002
        """Say how many rows :meth:`assemble` will give."""
        return num_views * self.rows_per_view

    def tower(self, pixels: Tensor) -> Tensor:
        """Encode and project views.

        Shapes:
            pixels: [N, 3, S, S]; result: [N, rows_per_view, hidden_size].
        """
        projected: Tensor = self._projector(self._tower(pixels)[:, self._first :])
        return projected

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:  # noqa: ARG002
        """Put the rows of the views in a line.

        Shapes:
            features: [views, rows_per_view, hidden_size]; result: [k, hidden_size].
        """
        return features.flatten(0, 1)
