"""Resizing and cropping in one step, with the same bits as Pillow in two steps.

Pillow resizes along rows, rounds to 8 bits, and then resizes along columns. Here it does the same
for a smaller box: the first pass omits rows that the crop does not need, and both passes omit
columns. A narrower box can change the rounding of the weights of its columns, because Pillow
stores its edges as float32; so a box is used only if Pillow will compute equal weights for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]

_MAX_TRIES = 8
"""The number of boxes whose weights are compared before all columns are resized instead."""


@dataclass(frozen=True)
class _Kernel:
    reach: int
    """The support of the kernel, in pixels of the result."""
    weigh: Callable[[Floats], Floats]


def _bilinear(distance: Floats) -> Floats:
    return np.maximum(1 - distance, 0)


def _bicubic(distance: Floats) -> Floats:
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))


_KERNELS: Mapping[Image.Resampling, _Kernel] = {
    Image.Resampling.BILINEAR: _Kernel(1, _bilinear),
    Image.Resampling.BICUBIC: _Kernel(2, _bicubic),
}


class _Columns(NamedTuple):
    """The columns of an image from which a range of columns of the result is computed."""

    left: int
    right: int
    box_left: float
    """Relative to ``left``."""
    box_right: float
    num_resized: int
    num_before: int
    """Number of resized columns before the first that is needed."""


def resize_and_crop(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """Return ``image.resize(size, resample).crop(box)`` for an RGB image."""
    left, top, right, bottom = box
    is_part = 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1] and box != (0, 0, *size)
    if not is_part or resample not in _KERNELS or not _rows_come_first(image.size, size):
        return image.resize(size, resample).crop(box)
    first, last = _source(image.height, size[1], top, bottom, resample)
    columns = _narrowest(image.width, size[0], left, right, resample)
    strip = _crop(image, (columns.left, first, columns.right, last)).resize(
        (columns.num_resized, last - first),
        resample,
        box=(columns.box_left, 0, columns.box_right, last - first),
    )
    strip = _crop(strip, (columns.num_before, 0, columns.num_before + right - left, strip.height))
    if strip.height < image.height:  # the second pass needs the full height for its weights
        rows, strip = strip, Image.new(image.mode, (strip.width, image.height))
        strip.paste(rows, (0, first))
    return _crop(strip.resize((strip.width, size[1]), resample), (0, top, strip.width, bottom))


def _rows_come_first(source: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether every version of Pillow resizes along rows first; 13 does not for tall images."""
    shrinks = source[1] - size[1]
    return shrinks <= 0 or shrinks <= 2 * (source[0] - size[0])


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image if box == (0, 0, *image.size) else image.crop(box)


def _source(
    length: int, num_resized: int, first: int, last: int, resample: Image.Resampling
) -> tuple[int, int]:
    """Return the range of pixels on which a range of resized pixels depends, and a few more."""
    step = length / num_resized
    reach = _KERNELS[resample].reach * max(step, 1) + 1
    return max(math.floor(first * step - reach), 0), min(math.ceil(last * step + reach), length)


@lru_cache(1024)
def _narrowest(
    length: int, num_resized: int, first: int, last: int, resample: Image.Resampling
) -> _Columns:
    """Find the narrowest box that gives the same columns from ``first`` to ``last``."""
    divisor = math.gcd(length, num_resized)
    period, source_period = num_resized // divisor, length // divisor
    # Only whole periods have a width in pixels that float32 can represent.
    num_periods = -(-(last - first) // period)
    num_columns, width = num_periods * period, num_periods * source_period
    source = _source(length, num_resized, first, last, resample)
    expected = _weights(length, 0, length / num_resized, first, last, resample)
    starts = np.arange(max(last - num_columns, 0), min(first, num_resized - num_columns) + 1)
    edges = starts * source_period
    lefts = np.where(edges % period, np.minimum(edges // period, source[0]), 0)
    exact = edges / period - lefts
    rounded = exact.astype(np.float32)
    for number in np.argsort(np.abs(exact - rounded), kind="stable")[:_MAX_TRIES].tolist():
        start, left = int(starts[number]), int(lefts[number])
        box_left, box_right = rounded[number], np.float32(exact[number] + width)
        right = max(left + math.ceil(box_right), source[1]) if left else length
        step = float(box_right - box_left) / num_columns
        weights = _weights(
            right - left, float(box_left), step, first - start, last - start, resample
        )
        if _are_equal(weights, expected, left):
            return _Columns(
                left, right, float(box_left), float(box_right), num_columns, first - start
            )
    return _Columns(0, length, 0, length, num_resized, first)


def _weights(
    length: int, start: float, step: float, first: int, last: int, resample: Image.Resampling
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compute the weights of resized pixels as Pillow does, in units of 2**-22.

    Shapes:
        results: [last - first], the first source pixel of each; and [last - first, k].

    Source: ``precompute_coeffs`` in Pillow's ``Resample.c``.
    """
    kernel = _KERNELS[resample]
    scale = max(step, 1)
    centers = start + (np.arange(first, last) + 0.5) * step
    lows = np.maximum((centers - kernel.reach * scale + 0.5).astype(np.int64), 0)
    highs = np.minimum((centers + kernel.reach * scale + 0.5).astype(np.int64), length)
    pixels = lows[:, None] + np.arange((highs - lows).max())
    weights = kernel.weigh(np.abs(pixels - centers[:, None] + 0.5) / scale)
    weights *= pixels < highs[:, None]
    weights /= weights.cumsum(axis=1)[:, -1:]
    return lows, np.trunc(weights * 2**22 + np.copysign(0.5, weights)).astype(np.int64)


def _are_equal(
    weights: tuple[NDArray[np.int64], NDArray[np.int64]],
    expected: tuple[NDArray[np.int64], NDArray[np.int64]],
    shift: int,
) -> bool:
    return np.array_equal(weights[0] + shift, expected[0]) and np.array_equal(
        weights[1], expected[1]
    )
