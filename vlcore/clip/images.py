"""Image processing for CLIP vision encoders: squares, padding and grids of tiles.

Pixels equal those of transformers' ``CLIPImageProcessor``, which the reference implementations use:
Pillow resizes, then values are scaled and normalised in float32.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlcore.clip.resize import resize_and_crop
from vlcore.errors import ConfigError, ImageLimitError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_SQUARE_PIXELS = 2**27
MAX_RESIZED_PIXELS = 2**26

Size = tuple[int, int]
"""(width, height), as in Pillow."""


@dataclass(frozen=True)
class ClipProcessor:
    """The steps of a ``preprocessor_config.json``: resize, crop, scale, normalise."""

    shortest_edge: int | None
    """Length of the shorter side after resizing; ``None`` if ``resize_to`` gives both sides."""
    resize_to: Size | None
    crop_to: Size | None
    resample: Image.Resampling = Image.Resampling.BICUBIC
    scale: float | None = 1 / 255
    mean: tuple[float, ...] | None = CLIP_MEAN
    std: tuple[float, ...] | None = CLIP_STD

    @classmethod
    def from_json(cls, config: Mapping[str, Any], image_size: int, where: str) -> ClipProcessor:
        """Read a preprocessor configuration; absent keys have CLIP's defaults.

        Raises:
            ConfigError: a value is malformed or impossible.
        """
        size = config.get("size", {"shortest_edge": image_size})
        shortest_edge, resize_to = _read_size(size, where)
        _, crop_to = _read_size(config.get("crop_size", image_size), where, square=True)
        normalises = config.get("do_normalize", True)
        resizes = config.get("do_resize", True)
        return cls(
            shortest_edge=shortest_edge if resizes else None,
            resize_to=resize_to if resizes else None,
            crop_to=crop_to if config.get("do_center_crop", True) else None,
            resample=_read_resample(config.get("resample", Image.Resampling.BICUBIC), where),
            scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else None,
            mean=_read_channels(config, "image_mean", CLIP_MEAN, where) if normalises else None,
            std=_read_channels(config, "image_std", CLIP_STD, where) if normalises else None,
        )

    @property
    def edge(self) -> int:
        """The side length of the square view, in pixels."""
        if self.shortest_edge is not None:
            return self.shortest_edge
        return min(self.resize_to or self.crop_to or (0, 0))

    @property
    def background(self) -> tuple[int, ...]:
        """The mean colour, with which the reference implementation pads."""
        return tuple(int(channel * 255) for channel in self.mean or CLIP_MEAN)

    def __call__(self, image: Image.Image) -> Tensor:
        """Process one RGB image.

        Shapes:
            result: [3, H, W] float32.
        """
        levels = np.asarray(self._resize_and_crop(image))
        pixels = np.empty((3, *levels.shape[:2]), dtype=np.float32)
        for channel, values in enumerate(self._values):
            np.take(values, levels[..., channel], out=pixels[channel], mode="clip")
        return torch.from_numpy(pixels)

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        """The scaled and normalised value of each of the 256 levels, in each channel."""
        levels = np.arange(256, dtype=np.float64)[:, None]
        values = (levels if self.scale is None else levels * self.scale).astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = np.array([self.mean, self.std], dtype=np.float32)
            values = (values - mean) / std
        return np.ascontiguousarray(np.broadcast_to(values, (256, 3)).T)

    def resized(self, size: Size) -> Size:
        """Return the size to which an image is resized, before it is cropped."""
        if self.shortest_edge is not None:
            return _scaled_to_edge(size, self.shortest_edge)
        return self.resize_to or size

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        size = self.resized(image.size)
        crop = self.crop_to or size
        left, top = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
        if size[0] * size[1] <= MAX_RESIZED_PIXELS or left < 0 or top < 0:
            kept_box = (left, top, left + crop[0], top + crop[1])
            return resize_and_crop(image, size, kept_box, self.resample)
        # A long thin strip: resize only the part that the crop keeps, which can round differently.
        x_scale, y_scale = image.width / size[0], image.height / size[1]
        box = (
            left * x_scale,
            top * y_scale,
            min((left + crop[0]) * x_scale, image.width),
            min((top + crop[1]) * y_scale, image.height),
        )
        return image.resize(crop, self.resample, box=box)


def read_pinpoints(value: Any, where: str, *, height_first: bool = False) -> tuple[Size, ...]:
    """Read grid pinpoints: a list of pairs, or the same as a string.

    Args:
        value: the value in the configuration.
        where: the description of the file in messages.
        height_first: whether the pairs are (height, width).

    Raises:
        ConfigError: the value is not a list of pairs of positive integers.
    """
    try:
        pairs = ast.literal_eval(value) if isinstance(value, str) else value
        sizes = tuple((int(first), int(second)) for first, second in pairs)
        if not sizes or min(min(size) for size in sizes) <= 0:
            raise ValueError("no sizes")
    except (TypeError, ValueError, OverflowError, SyntaxError) as error:
        raise ConfigError(
            f"{where}: image_grid_pinpoints must be a list of pairs such as [[336, 672]]; "
            f"it is {value!r}"
        ) from error
    return tuple((width, height) for height, width in sizes) if height_first else sizes


def best_canvas(size: Size, canvases: Sequence[Size]) -> Size:
    """Choose the canvas that keeps most of the image; then the smallest; then the first."""

    def score(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / size[0], canvas[1] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, kept - canvas[0] * canvas[1]

    return max(canvases, key=score)


def fit_on_canvas(image: Image.Image, canvas: Size, resample: Image.Resampling) -> Image.Image:
    """Resize an image to the largest size that fits a black canvas, and centre it there."""
    width, height = image.size
    if canvas[0] / width < canvas[1] / height:
        resized = (canvas[0], min(math.ceil(height * (canvas[0] / width)), canvas[1]))
    else:
        resized = (min(math.ceil(width * (canvas[1] / height)), canvas[0]), canvas[1])
    result = Image.new("RGB", canvas)
    corner = ((canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2)
    result.paste(image.resize(resized, resample), corner)
    return result


def cut_tiles(image: Image.Image, edge: int) -> list[Image.Image]:
    """Cut an image into square tiles, row by row."""
    width, height = image.size
    return [
        image.crop((left, top, left + edge, top + edge))
        for top in range(0, height, edge)
        for left in range(0, width, edge)
    ]


def pad_to_square(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """Centre an image in a square, with offsets rounded down.

    Raises:
        ImageLimitError: the square would have more than ``MAX_SQUARE_PIXELS`` pixels.
    """
    width, height = image.size
    if width == height:
        return image
    edge = max(width, height)
    if edge * edge > MAX_SQUARE_PIXELS:
        raise ImageLimitError(
            f"an image of {width} x {height} pixels is too long and thin: padded to a square it "
            f"has {edge * edge} pixels, and {MAX_SQUARE_PIXELS} are allowed. Crop or shrink it"
        )
    square = Image.new("RGB", (edge, edge), background)
    square.paste(image, ((edge - width) // 2, (edge - height) // 2))
    return square


def _read_size(size: Any, where: str, *, square: bool = False) -> tuple[int | None, Size | None]:
    match size:
        case int() if size > 0:
            return (None, (size, size)) if square else (size, None)
        case {"shortest_edge": int(edge)} if edge > 0:
            return edge, None
        case {"height": int(height), "width": int(width)} if min(height, width) > 0:
            return None, (width, height)
    raise ConfigError(
        f"{where}: a size must be an integer, shortest_edge, or height and width; it is {size!r}"
    )


def _read_resample(value: Any, where: str) -> Image.Resampling:
    try:
        return Image.Resampling(value)
    except ValueError as error:
        raise ConfigError(f"{where}: Pillow has no resampling filter {value!r}") from error


def _read_channels(
    config: Mapping[str, Any], key: str, default: tuple[float, ...], where: str
) -> tuple[float, ...]:
    match config.get(key, default):
        case [int() | float(), int() | float(), int() | float()] as values if (
            key == "image_mean" or 0 not in values
        ):
            return tuple(values)
    raise ConfigError(
        f"{where}: {key} must be three numbers, one for each channel; it is {config[key]!r}"
    )


def _scaled_to_edge(size: Size, edge: int) -> Size:
    width, height = size
    if width <= height:
        return edge, int(edge * height / width)
    return int(edge * width / height), edge
