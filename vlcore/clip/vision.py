"""A common kind of vision model: a CLIP encoder and a projector over views of an image."""

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
    """A projected hidden state of a CLIP encoder: one embedding for each patch of a square view.

    A subclass with several views of an image overrides :meth:`views` and :meth:`needed_size`, and
    also :meth:`count_rows` and :meth:`assemble` if the embeddings of the views are not simply
    concatenated.

    Args:
        tower: the encoder of a view.
        projector: maps a patch from the hidden size of the encoder to ``hidden_size``.
        processor: converts a view to pixels.
        hidden_size: the width of an embedding.
        pads: whether to pad an image to a square instead of cropping its middle.
        keep_class_token: whether the class token has an embedding too, before the patches.
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
        """The number of pixels along each side of a view."""
        self.grid_size = tower.config.grid_size
        """The number of patches along each side of a view."""
        self.rows_per_view = self.grid_size**2 + keep_class_token
        self._tower = tower
        self._projector = projector
        self._pads = pads
        self._first = 0 if keep_class_token else 1

    @property
    def device(self) -> torch.device:
        """The device of the pixels and embeddings, also if the encoder is distributed."""
        return self._device or super().device

    @property
    def preprocess_settings(self) -> Any:
        """The processor, and whether images are padded."""
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
        """Load encoder and projector.

        Args:
            checkpoint: the checkpoint that holds the projector.
            source: where the encoder is stored.
            projector: the projector, which has not been filled yet.
            prefixes: the prefix in the projector for each prefix in the checkpoint.
            layer: the encoder's hidden state; 0 is the embeddings, negative counts from the end.
            device: the device of the weights.
            dtype: the dtype of weights and embeddings.
            device_map: distributes the encoder over several devices.
            max_memory: the maximum memory of the encoder on each device.
            options: the other arguments of the class.

        Raises:
            ConfigError: the encoder has no such hidden state.
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
        holders = (checkpoint, source.checkpoint)
        model.fingerprint = "+".join(dict.fromkeys(holder.fingerprint for holder in holders))
        return model

    def needed_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the size to which the single view is resized, without the padding."""
        if not self._pads:
            return self.processor.resized(size)
        edge = max(size)
        width, height = self.processor.resized((edge, edge))
        return math.ceil(size[0] * width / edge), math.ceil(size[1] * height / edge)

    def preprocess(self, image: Image.Image, **options: Any) -> ImageInputs:
        """Convert an image to the normalised pixels of its views.

        Shapes:
            pixels: [views, 3, S, S] float32.
        """
        image = super().preprocess(image, **options)
        views, layout = self.views(image if image.mode == "RGB" else image.convert("RGB"))
        # NumPy copies in this thread; torch would use its own thread pool.
        pixels = np.stack([self.processor(view).numpy() for view in views])
        return ImageInputs(torch.from_numpy(pixels), layout, self.count_rows(len(views), layout))

    def views(self, image: Image.Image) -> tuple[Sequence[Image.Image], Any]:
        """Return the views of an RGB image that are encoded, and their layout.

        The processor resizes each view to the square of the encoder.
        """
        return [pad_to_square(image, self.processor.background) if self._pads else image], None

    def count_rows(self, num_views: int, layout: Any) -> int:  # noqa: ARG002
        """Return how many embeddings :meth:`assemble` will return."""
        return num_views * self.rows_per_view

    def tower(self, pixels: Tensor) -> Tensor:
        """Encode and project views.

        Shapes:
            pixels: [N, 3, S, S]; result: [N, rows_per_view, hidden_size].
        """
        projected: Tensor = self._projector(self._tower(pixels)[:, self._first :])
        return projected

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:  # noqa: ARG002
        """Concatenate the embeddings of the views.

        Shapes:
            features: [views, rows_per_view, hidden_size]; result: [k, hidden_size].
        """
        return features.flatten(0, 1)
