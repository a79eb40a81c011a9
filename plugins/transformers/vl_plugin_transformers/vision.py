"""Image embeddings by ``get_image_features`` of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from vl_plugin_transformers.modeling import EmptyModel
from vl_plugin_transformers.processor import FamilyProcessor, Layout
from vlcore import Checkpoint, ImageInputs, ImageRows, TensorSource, Video, VisionModel

_IMAGE_ARGUMENTS = {"pixel_values_videos": "pixel_values", "video_grid_thw": "image_grid_thw"}
"""The arguments of ``get_image_features`` that tensors of a video are passed as."""
_PATCHES_PER_TILE = 1024
"""Patches that count as a tile in a batch: those of a usual tile, 448 x 448 pixels."""


@dataclass(frozen=True)
class FeatureInputs(ImageInputs):
    """A preprocessed image or video, with all arguments of ``get_image_features``.

    Where frames of a video are encoded like images, a video has the arguments of an image.
    """

    features: Mapping[str, Any] = field(default_factory=dict)
    num_copies: int = 1
    """Number of copies of the image in ``features``, of which one is used."""


class TransformersVisionModel(VisionModel):
    """The vision encoder and projector of any family.

    Args:
        checkpoint: the checkpoint.
        device: the device of the weights.
        dtype: the dtype of the weights.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._processor = FamilyProcessor(checkpoint)
        model = EmptyModel(checkpoint)
        self.hidden_size = model.config.get_text_config().hidden_size
        self._batches = model.family.batches
        self._tiles_single = model.family.tiles_single
        self._num_layers = model.num_deepstack_layers
        unused = tuple(f"model.{name}." for name in model.family.unused)
        model.remove(model.text_name, *model.family.unused)
        model.module.lm_head = None
        sources = {
            name: TensorSource(name)
            for name, key in model.keys.items()
            if not model.is_text(key) and not key.startswith(unused)
        }
        checkpoint.load_module(model.module, sources, device=device, dtype=dtype)
        self._model = model.module
        self._get_features = model.inner.get_image_features
        self._arguments = inspect.signature(inspect.unwrap(self._get_features)).parameters
        self._placement = device, dtype
        if (sampling := self._processor.video_sampling) is not None:
            self.video_sampling = sampling

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._placement[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self._placement[1]

    @property
    def row_width(self) -> int:
        """Width of an embedding, followed by what is added after the first decoder layers."""
        return self.hidden_size * (1 + self._num_layers)

    def request_options(self, num_images: int) -> Mapping[str, Any]:
        """Return how many images the processor must see, if preprocessing depends on that.

        Copies of the image take the part of the others.
        """
        return {"num_copies": 2} if self._tiles_single and num_images > 1 else {}

    def preprocess(  # type: ignore[override]
        self, image: Image.Image, *, num_copies: int = 1
    ) -> FeatureInputs:
        """Resize, split and normalise an image, as the processor of the family does."""
        tensors, layout = self._processor(image.convert("RGB"), num_copies)
        return self._inputs(tensors, layout, num_copies)

    @property
    def takes_video(self) -> bool:
        """Whether the plugin supports videos of the family."""
        return self._processor.takes_video

    def preprocess_frames(self, video: Video) -> FeatureInputs:  # type: ignore[override]
        """Resize and normalise the frames of a video, as the processor of the family does."""
        tensors, layout = self._processor.video(video)
        as_images = {_IMAGE_ARGUMENTS.get(key, key): value for key, value in tensors.items()}
        if as_images["pixel_values"].ndim > 4:  # the frames of one video
            as_images["pixel_values"] = as_images["pixel_values"].flatten(0, 1)
        return self._inputs(as_images, layout)

    def _inputs(
        self, tensors: Mapping[str, Any], layout: Layout, num_copies: int = 1
    ) -> FeatureInputs:
        features = {key: value for key, value in tensors.items() if key in self._arguments}
        pixels = next(value for key, value in features.items() if "pixel_values" in key)
        is_packed = pixels.ndim < 4 or layout.grid is not None
        num_tiles = -(-len(pixels) // _PATCHES_PER_TILE) if is_packed else pixels.shape[:-3].numel()
        return FeatureInputs(pixels, layout, layout.num_rows, num_tiles, features, num_copies)

    def forward(self, inputs: Sequence[FeatureInputs]) -> list[ImageRows]:
        """Encode images in one forward pass, if the family allows it."""
        if len(inputs) > 1 and not self._batches:
            return [rows for image in inputs for rows in self.forward([image])]
        features = {
            key: self._to_device(_concatenate([image.features[key] for image in inputs]))
            for key in inputs[0].features
        }
        with torch.inference_mode():
            output = self._get_features(**features, return_dict=True)
        pooled = output.pooler_output
        rows = _flatten(output.last_hidden_state if pooled is None else pooled)
        if self._num_layers:
            rows = torch.cat([rows, *map(_flatten, output.deepstack_features)], dim=1)
        counts = [(image.num_rows or 0) * image.num_copies for image in inputs]
        if inputs[0].layout.indicators:
            counts = [image.layout.indicators.count(-1) for image in inputs]
        per_image = list(torch.split(rows, counts))
        if inputs[0].layout.indicators:
            table = output.visual_indicator_features
            per_image = [
                _with_indicators(part, table, image.layout.indicators)
                for part, image in zip(per_image, inputs, strict=True)
            ]
        return [
            ImageRows(part[: len(part) // image.num_copies], image.layout)
            for part, image in zip(per_image, inputs, strict=True)
        ]

    def _to_device(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype if value.is_floating_point() else None)


def _with_indicators(rows: Tensor, table: Tensor, indicators: Sequence[int]) -> Tensor:
    """Insert indicators between the embeddings of an image.

    Shapes:
        rows: [k, hidden_size].
        table: [number of indicators, hidden_size].
        result: [len(indicators), hidden_size].
    """
    order = torch.tensor(indicators, device=rows.device)
    is_row = order == -1
    order[is_row] = len(table) + torch.arange(len(rows), device=rows.device)
    return torch.cat([table.to(rows), rows])[order]


def _flatten(rows: Tensor | Sequence[Tensor]) -> Tensor:
    """Concatenate the embeddings of all tiles.

    Shapes:
        result: [k, hidden_size].
    """
    if isinstance(rows, Tensor):
        return rows.flatten(0, -2)
    return torch.cat([part.flatten(0, -2) for part in rows])


def _concatenate(values: Sequence[Any]) -> Any:
    """Concatenate an argument of several images, padded with zeros to a common shape."""
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    if not isinstance(values[0], Tensor):
        return values[0]
    if values[0].ndim > 1:
        shape = [max(value.shape[axis] for value in values) for axis in range(values[0].ndim)]
        values = [
            pad(
                value,
                [
                    end
                    for axis in range(value.ndim - 1, 0, -1)
                    for end in (0, shape[axis] - value.shape[axis])
                ],
            )
            for value in values
        ]
    return torch.cat(list(values))
