"""Pictures from anywhere, as upright RGB images within limits.

What is decided here, for every plugin alike:

- transparency is dropped, not blended: ``convert("RGB")``, as the released models do;
- the orientation in a photo's EXIF data is applied, so that the model sees what people see;
- of an animation, the first frame is taken;
- deep grey is scaled to 8 bits: 16-bit values by 257, and so 32-bit ones unless none exceeds 255;
- a truncated file is an error.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from vlcore.errors import ImageError, ImageLimitError, VlcoreError
from vlcore.media.policy import (
    DEFAULT_LIMITS,
    TRUSTING,
    DecodedBudget,
    ImageAccess,
    ImageLimits,
)
from vlcore.media.source import ImageSource, describe, read_image

_SHRINK_MARGIN = 1.5
"""How many times the needed size a shrunken picture keeps at least, so that resizing it still
averages: at 1.6 times, pixels of photographs differed by 0.6 of 255 levels in the mean and by 7 at
most; at 1.1 times, by 1.6 and 31."""

NeededSize = Callable[[tuple[int, int]], tuple[int, int] | None]
"""From the size of an upright picture to that which is needed; ``None`` for all of it."""


def load_image(
    source: ImageSource,
    limits: ImageLimits = DEFAULT_LIMITS,
    access: ImageAccess = TRUSTING,
    budget: DecodedBudget | None = None,
) -> Image.Image:
    """Load a picture.

    Args:
        source: a path, an http(s), ``file:`` or ``data:`` URL, the bytes of a file, or a PIL image.
        limits: what it may cost.
        access: where it may come from; anywhere, unless told otherwise.
        budget: what the pictures of its request may still take.

    Returns:
        An RGB image, decoded, upright.

    Raises:
        ImageError: it is missing, is not allowed, cannot be fetched or is no readable picture.
        ImageLimitError: it is larger than a limit.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, describe(source), limits)
    data = read_image(source, limits, access)
    return decode_image(data, describe(source), limits, budget=budget)


def decode_image(
    data: bytes,
    name: str,
    limits: ImageLimits = DEFAULT_LIMITS,
    needed_size: NeededSize | None = None,
    budget: DecodedBudget | None = None,
) -> Image.Image:
    """Decode the bytes of a picture's file.

    Args:
        data: the bytes.
        name: what messages call it.
        limits: what it may cost.
        needed_size: shrinks a JPEG on load: its decoder, which does that fast, gives a half, a
            quarter or an eighth of the size where that leaves more than what is needed.
        budget: what the pictures of its request may still take.

    Returns:
        An RGB image, decoded, upright.

    Raises:
        ImageError: it is no readable picture.
        ImageLimitError: it is larger than a limit.
    """
    formats = ", ".join(limits.formats)
    if not data:
        raise ImageError(f"{name} is empty: a picture in one of {formats} is expected")
    try:
        opened = Image.open(io.BytesIO(data), formats=_known(limits))
    except Image.DecompressionBombError as error:
        raise ImageLimitError(
            f"{name} is too large: {error}. Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS and "
            "max_pixels of vlcore.ImageLimits"
        ) from error
    except Image.DecompressionBombWarning as error:
        raise ImageLimitError(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} ({len(data)} bytes) is not a picture in one of {formats}"
        ) from error
    except Exception as error:  # decoders raise many types on damaged files
        raise ImageError(f"{name} has a damaged header: {type(error).__name__}: {error}") from error
    with opened:
        return _to_rgb(opened, name, limits, needed_size, budget)


def _known(limits: ImageLimits) -> list[str]:
    Image.init()  # registers the formats; an older Pillow lacks some
    return [one for one in limits.formats if one in Image.OPEN]


def _to_rgb(
    image: Image.Image,
    name: str,
    limits: ImageLimits,
    needed_size: NeededSize | None = None,
    budget: DecodedBudget | None = None,
) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: it is {width} x {height}")
    if width * height > limits.max_pixels:
        raise ImageLimitError(
            f"{name} is {width} x {height} = {width * height} pixels, more than "
            f"max_pixels={limits.max_pixels} of vlcore.ImageLimits: shrink it or raise the limit"
        )
    if budget is not None:
        budget.take(width, height, name)
    try:
        if needed_size is not None and isinstance(image, JpegImageFile):
            _shrink_on_load(image, needed_size)
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "RGB":
            return upright.copy() if upright is image else upright
        return _convert(upright)
    except VlcoreError:
        raise
    except Exception as error:  # decoders raise many types on damaged files
        raise ImageError(
            f"{name} is damaged or truncated: {type(error).__name__}: {error}"
        ) from error


def _shrink_on_load(image: JpegImageFile, needed_size: NeededSize) -> None:
    # The orientations from 5 on lay a picture on its side.
    turn = -1 if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else 1
    width, height = image.size[::turn]
    if (needed := needed_size((width, height))) is not None:
        least_width, least_height = (math.ceil(side * _SHRINK_MARGIN) for side in needed[::turn])
        image.draft(None, (least_width, least_height))


def _convert(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_grey(image).convert("RGB")
    if "transparency" in image.info:  # Pillow warns when it drops a palette's transparency
        image = image.convert("RGBA")
    return image.convert("RGB")


def _scale_grey(image: Image.Image) -> Image.Image:
    """Scale deep grey to 8 bits.

    32-bit integers hold 16-bit values in the files that Pillow reads, or what ``convert("I")``
    made of 8-bit ones; floats are in 0..1 or in 0..255.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode == "F":
        values = values * 255 if values.max(initial=0) <= 1 else values
    elif values.max(initial=0) > 255 or image.mode != "I":
        values = values / 257
    return Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8))
