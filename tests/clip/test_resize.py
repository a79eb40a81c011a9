from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlcore.clip.resize import _narrowest, resize_and_crop

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
NOISE = np.random.default_rng(0).integers(0, 256, (700, 1100, 3), dtype=np.uint8)

Box = tuple[int, int, int, int]


def make_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(NOISE[:height, :width]))


def middle(size: tuple[int, int], crop: tuple[int, int]) -> Box:
    left, top = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
    return left, top, left + crop[0], top + crop[1]


def differing(image: Image.Image, size: tuple[int, int], box: Box, how: Image.Resampling) -> int:
    """How many values are not those of Pillow's two steps."""
    expected = np.asarray(image.resize(size, how).crop(box))
    result = np.asarray(resize_and_crop(image, size, box, how))
    assert result.shape == expected.shape
    return int((result != expected).sum())


def test_the_middle_of_images_of_any_shape_equals_pillows() -> None:
    draw = np.random.default_rng(1)
    for number in range(300):
        width, height = (int(length) for length in draw.integers(1, (1101, 701)))
        if number % 3 == 0:  # sides with common divisors, as most images have them
            unit = int(draw.integers(2, 60))
            width, height = max(width // unit, 1) * unit, max(height // unit, 1) * unit
            width, height = min(width, 1100), min(height, 700)
        edge = int(draw.integers(1, 340))
        size = max(edge, edge * width // height), max(edge, edge * height // width)
        if size[0] * size[1] > 10**6:
            continue
        how = Image.Resampling(int(draw.choice([BILINEAR, BICUBIC])))
        image = make_image(width, height)
        assert not differing(image, size, middle(size, (edge, edge)), how), (image.size, size, how)


def test_any_part_equals_pillows() -> None:
    draw = np.random.default_rng(2)
    for _ in range(200):
        image = make_image(*(int(length) for length in draw.integers(1, (1101, 701))))
        size = int(draw.integers(1, 400)), int(draw.integers(1, 400))
        crop = int(draw.integers(1, size[0] + 1)), int(draw.integers(1, size[1] + 1))
        left = int(draw.integers(0, size[0] - crop[0] + 1))
        top = int(draw.integers(0, size[1] - crop[1] + 1))
        box = left, top, left + crop[0], top + crop[1]
        how = Image.Resampling(int(draw.choice([BILINEAR, BICUBIC])))
        assert not differing(image, size, box, how), (image.size, size, box, how)


@pytest.mark.parametrize("how", [BILINEAR, BICUBIC])
@pytest.mark.parametrize(
    ("width", "height", "num_columns"),
    [
        (1920, 1080, 398),  # 640 pixels to 199 columns: two times that holds the 336 wanted ones
        (3840, 2160, 398),
        (4000, 3000, 336),
        (640, 480, 336),
        (1280, 720, 597),  # no common divisor: float32 holds no narrower box
    ],
)
def test_columns_outside_the_crop_are_left_out_if_no_weight_changes(
    width: int, height: int, num_columns: int, how: Image.Resampling
) -> None:
    size = 336 * width // height, 336
    left, _, right, _ = middle(size, (336, 336))
    assert _narrowest(width, size[0], left, right, how).num_resized == num_columns
    row = np.random.default_rng(width).integers(0, 256, (60, width, 3), dtype=np.uint8)
    # The height of a strip does not matter for its columns.
    assert not differing(Image.fromarray(row), (size[0], 20), (left, 3, right, 17), how)


@pytest.mark.parametrize(
    ("how", "box"),
    [
        (BICUBIC, (-4, -6, 44, 36)),
        (BICUBIC, (30, 0, 50, 20)),
        (Image.Resampling.LANCZOS, (5, 0, 35, 30)),
        (Image.Resampling.NEAREST, (5, 0, 35, 30)),
        (BICUBIC, (0, 0, 40, 30)),
    ],
    ids=["around", "next to", "lanczos", "nearest", "whole"],
)
def test_other_filters_are_left_to_pillow(how: Image.Resampling, box: Box) -> None:
    assert not differing(make_image(400, 300), (40, 30), box, how)
