"""Sample images: plain ones of several sizes, and unusual ones; and sample videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlcore.media.video import Video
from vlcore.testing.report import fail
from vlcore.vision.model import ImageRows, VisionModel

SIZES = ((64, 48), (48, 64), (33, 97), (150, 150))


def sample_image(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Draw an RGB image of colour gradients with noise; the brightness depends on the seed."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 64, (height, width, 3))
    x, y = np.linspace(0, 190, width), np.linspace(0, 190, height)[:, None]
    soft = np.stack([x + 0 * y, y + 0 * x, (x + y) / 2], axis=2)
    return Image.fromarray(((soft + noise) * 0.8**seed).astype(np.uint8))


def sample_video(size: tuple[int, int], num_frames: int, seed: int = 0) -> Video:
    """Draw a video of which every frame differs, one for each half second."""
    frames = tuple(sample_image(size, seed + number) for number in range(num_frames))
    times = tuple(number / 2 for number in range(num_frames))
    return Video(frames, times, num_frames / 2, 2.0, num_frames)


def plain_images() -> list[Image.Image]:
    """RGB images of several sizes."""
    return [sample_image(size, seed) for seed, size in enumerate(SIZES)]


def unusual_images() -> Mapping[str, Image.Image]:
    """Images of extreme sizes and of every mode of image files, by description."""
    base = sample_image((40, 30))
    transparent = base.quantize(16)
    transparent.info["transparency"] = 0
    draw: dict[str, Callable[[], Image.Image]] = {
        "1 x 1": lambda: sample_image((1, 1)),
        "1 x 5000": lambda: sample_image((1, 5000)),
        "5000 x 1": lambda: sample_image((5000, 1)),
        "grey (L)": lambda: base.convert("L"),
        "grey with alpha (LA)": lambda: base.convert("LA"),
        "black and white (1)": lambda: base.convert("1"),
        "with alpha (RGBA)": lambda: base.convert("RGBA"),
        "palette (P)": lambda: base.quantize(16),
        "palette with transparency (P)": lambda: transparent,
        "CMYK": lambda: base.convert("CMYK"),
        "16-bit grey (I;16)": lambda: Image.fromarray(
            np.asarray(base.convert("L")).astype(np.uint16) * 257
        ),
        "32-bit grey (I)": lambda: base.convert("I"),
        "floating grey (F)": lambda: base.convert("F"),
    }
    return {name: make() for name, make in draw.items()}


def encode(model: VisionModel, images: Sequence[Image.Image]) -> list[ImageRows]:
    """Preprocess images, and encode them in one forward pass."""
    return forward(model, [model.preprocess(image) for image in images])


def forward(model: VisionModel, inputs: Sequence[Any]) -> list[ImageRows]:
    """Encode preprocessed images, without checking shapes and values of the embeddings.

    Raises:
        CheckFailedError: the results are not tensors, one per image.
    """
    with torch.inference_mode():
        results: Any = model.forward(inputs)
    where = f"{type(model).__name__}.forward, {len(inputs)} image(s)"
    advice = "return a list with one matrix, or one ImageRows, per image"
    found = [result if isinstance(result, ImageRows) else ImageRows(result) for result in results]
    if len(found) != len(inputs):
        actual = f"{len(found)} result(s)"
        fail(expected=f"{len(inputs)} result(s)", actual=actual, where=where, advice=advice)
    for image in found:
        rows: object = image.rows
        if not isinstance(rows, Tensor):
            fail(expected="tensors", actual=type(rows).__name__, where=where, advice=advice)
    return found
