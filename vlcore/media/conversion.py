"""Conversion of decoded images of any mode to RGB."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from vlcore.errors import OptionError

_TILE_PIXELS = 2**18
"""Images are converted in tiles of this size at most, so that intermediate values take little
memory."""
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")

Color = tuple[int, int, int]


def parse_background(background: str | None) -> Color | None:
    """Read a background colour such as ``"white"`` or ``"#ffffff"``.

    Raises:
        OptionError: it is not a colour that Pillow knows.
    """
    if background is None:
        return None
    try:
        red, green, blue = ImageColor.getrgb(background)[:3]
    except (ValueError, AttributeError, TypeError) as error:
        raise OptionError(
            f"a background is a colour such as 'white' or '#ffffff'; it is {background!r}"
        ) from error
    return red, green, blue


def stored_bytes(mode: str, size: tuple[int, int]) -> int:
    """Return the memory of an image of this mode and size, in bytes.

    It is that of the pixels, and of a pointer for each row.

    Source: ``Storage.c`` of Pillow.
    """
    width, height = size
    pixel_bytes = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
    return height * (width * pixel_bytes + 8)


def to_rgb(image: Image.Image, background: Color | None = None) -> Image.Image:
    """Convert a decoded image to RGB.

    Args:
        image: the image, in any mode.
        background: the colour behind transparent pixels; ``None`` drops the transparency, which
            keeps the colour that is stored in a transparent pixel.

    Returns:
        ``image`` itself if it is RGB and opaque, or a new image.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_grey(image)
    has_alpha = image.mode in _ALPHA_MODES
    is_transparent = has_alpha or "transparency" in image.info
    if background is not None and is_transparent:
        return _on_background(image, background)
    if image.mode == "RGB":
        return image
    if is_transparent and not has_alpha:  # Pillow warns when it drops a palette's transparency
        return _in_tiles(image, lambda tile: tile.convert("RGBA").convert("RGB"))
    return image.convert("RGB")


def _on_background(image: Image.Image, background: Color) -> Image.Image:
    def blend(tile: Image.Image) -> Image.Image:
        layer = tile.convert("RGBA")
        result = Image.new("RGB", tile.size, background)
        result.paste(layer, mask=layer.getchannel("A"))
        return result

    return _in_tiles(image, blend)


def _scale_grey(image: Image.Image) -> Image.Image:
    """Scale grey levels of more than 8 bits to 8 bits.

    32-bit integers are 16-bit values in the files that Pillow reads, or 8-bit values that were
    converted to mode ``"I"``. Floating-point values are in 0..1 or in 0..255.
    """
    largest = max(float(_levels(tile).max(initial=0)) for _, tile in _tiles(image))
    if image.mode == "F":
        scale = 255.0 if largest <= 1 else 1.0
    else:
        scale = 1 / 257 if largest > 255 or image.mode != "I" else 1.0

    def convert(tile: Image.Image) -> Image.Image:
        levels = _levels(tile)
        levels = levels / 257 if scale == 1 / 257 else levels * scale
        return Image.fromarray(np.clip(levels.round(), 0, 255).astype(np.uint8)).convert("RGB")

    return _in_tiles(image, convert)


def _levels(tile: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(tile).astype(np.float64))


def _in_tiles(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image tile by tile, with little memory in addition to the result."""
    result = Image.new("RGB", image.size)
    for corner, tile in _tiles(image):
        result.paste(convert(tile), corner)
    return result


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Yield tiles that cover an image, each with its upper left corner."""
    width = min(image.width, _TILE_PIXELS)
    height = max(_TILE_PIXELS // width, 1)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        for left in range(0, image.width, width):
            box = (left, top, min(left + width, image.width), bottom)
            yield (left, top), image.crop(box)
