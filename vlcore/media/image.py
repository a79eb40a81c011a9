"""Loading of images from any source, as upright RGB images within limits.

The following holds for every plugin:

- transparency is dropped, as in the reference implementations of models, unless a background
  colour is given;
- the orientation in the metadata is applied, so that the model sees the image as people see it;
- only the first frame of an animation is read;
- grey levels of more than 8 bits are scaled to 8 bits: 16-bit values are divided by 257, and so are
  32-bit values unless none exceeds 255;
- a truncated file is an error, except for a JPEG that lacks only its end marker;
- memory and time are bounded: sizes and scans are checked before anything is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from vlcore.errors import ImageError, ImageLimitError, VlcoreError
from vlcore.media import heif, jpeg, png
from vlcore.media.conversion import Color, parse_background, stored_bytes, to_rgb
from vlcore.media.metered_file import MeteredFile
from vlcore.media.orientation import read_orientation, swaps_sides, transpose_method
from vlcore.media.policy import (
    DEFAULT_LIMITS,
    TRUSTING,
    DecodedBudget,
    ImageAccess,
    ImageLimits,
)
from vlcore.media.source import ImageSource, describe, read_image

_SHRINK_MARGIN = 1.5
"""The factor by which a shrunken image is at least larger than needed, so that resizing it still
averages: at a factor of 1.6, pixels of photographs differed by 0.6 of 255 levels in the mean and by
7 at most; at 1.1, by 1.6 and 31."""

_DECODER_PIXEL_BYTES = {"AVIF": 8, "HEIF": 8, "WEBP": 12}
"""The memory that a decoder takes for each pixel in addition to the decoded image, in bytes, where
it is not small."""

NeededSize = Callable[[tuple[int, int]], tuple[int, int] | None]
"""Returns the size that is needed of an upright image of the given size; ``None`` for all of it."""


def load_image(
    source: ImageSource,
    limits: ImageLimits = DEFAULT_LIMITS,
    access: ImageAccess = TRUSTING,
    budget: DecodedBudget | None = None,
    *,
    background: str | None = None,
) -> Image.Image:
    """Load an image.

    Args:
        source: a path, an http(s), ``file:`` or ``data:`` URL, the bytes of a file, or a PIL image.
        limits: the limits of an image.
        access: the allowed sources; by default, all of them.
        budget: the memory that the images of its request may still take; by default, that of a
            request with this image alone.
        background: the colour behind transparent pixels, such as ``"white"``; ``None`` drops the
            transparency.

    Returns:
        An RGB image, decoded and upright.

    Raises:
        ImageError: the image is missing, not allowed, cannot be fetched or cannot be decoded.
        ImageLimitError: the image exceeds a limit.
        OptionError: ``background`` is not a colour.
    """
    if isinstance(source, Image.Image):
        return _copy_image(source, describe(source), limits, parse_background(background))
    data = read_image(source, limits, access)
    budget = DecodedBudget(limits) if budget is None else budget
    return decode_image(data, describe(source), limits, budget=budget, background=background)


def decode_image(
    data: bytes,
    name: str,
    limits: ImageLimits = DEFAULT_LIMITS,
    needed_size: NeededSize | None = None,
    budget: DecodedBudget | None = None,
    *,
    background: str | None = None,
) -> Image.Image:
    """Decode the bytes of an image file.

    Args:
        data: the bytes.
        name: the name of the image in messages.
        limits: the limits of an image.
        needed_size: shrinks a JPEG while it is decoded, which is fast: to a half, a quarter or an
            eighth of its size if that is still larger than the needed size.
        budget: the memory that the images of its request may still take.
        background: the colour behind transparent pixels, such as ``"white"``; ``None`` drops the
            transparency.

    Returns:
        An RGB image, decoded and upright.

    Raises:
        ImageError: the image cannot be decoded.
        ImageLimitError: the image exceeds a limit.
        OptionError: ``background`` is not a colour.
    """
    decoder = _decoder(data, name, limits, needed_size, budget, background)
    if data.startswith(png.SIGNATURE):
        return decoder.decode(png.without_metadata(data, name))
    if not data.startswith(jpeg.SIGNATURE):
        return decoder.decode(data)
    structure = jpeg.read_structure(data, name)
    if structure.may_lack_only_the_end and (versions := jpeg.with_end(data)) is not None:
        return decoder.decode_alike(*versions, structure.coefficient_bytes)
    return decoder.decode(data, structure.coefficient_bytes)


def check_image(data: bytes, name: str, limits: ImageLimits, budget: DecodedBudget) -> None:
    """Check the header of an image file as :func:`decode_image` does, without decoding the image.

    Args:
        data: the bytes.
        name: the name of the image in messages.
        limits: the limits of an image.
        budget: the memory that the images of its request may still take.

    Raises:
        ImageError: the bytes are not an image, or its header is damaged.
        ImageLimitError: the image exceeds a limit.
    """
    decoder = _decoder(data, name, limits, budget=budget)
    if data.startswith(png.SIGNATURE):
        data = png.without_metadata(data, name)
    num_bytes = 0
    if data.startswith(jpeg.SIGNATURE):
        num_bytes = jpeg.read_structure(data, name).coefficient_bytes
    with decoder.opened(data, num_bytes):
        pass


def _decoder(
    data: bytes,
    name: str,
    limits: ImageLimits,
    needed_size: NeededSize | None = None,
    budget: DecodedBudget | None = None,
    background: str | None = None,
) -> _Decoder:
    if not data:
        raise ImageError(
            f"{name} is empty: an image in one of {', '.join(limits.formats)} is expected"
        )
    return _Decoder(name, limits, needed_size, budget, parse_background(background))


class _Decoder:
    """Decodes one image within its limits."""

    def __init__(
        self,
        name: str,
        limits: ImageLimits,
        needed_size: NeededSize | None,
        budget: DecodedBudget | None,
        background: Color | None,
    ) -> None:
        self._name = name
        self._limits = limits
        self._needed_size = needed_size
        self._budget = budget
        self._background = background

    @contextmanager
    def opened(self, data: bytes, extra_bytes: int = 0) -> Iterator[ImageFile]:
        """Open a file whose decoder takes some memory in addition to the image; check its size."""
        with _open(data, self._name, self._limits) as opened:
            _check_size(opened, self._name, self._limits)
            self._take_budget(opened, extra_bytes)
            yield opened

    def decode(self, data: bytes, extra_bytes: int = 0) -> Image.Image:
        """Decode a file whose decoder takes some memory in addition to the image."""
        with self.opened(data, extra_bytes) as opened:
            try:
                orientation = read_orientation(opened)
                if self._needed_size is not None and isinstance(opened, JpegImageFile):
                    _shrink_on_load(opened, self._needed_size, orientation)
                opened.load()
                image = _finish(_detach(opened), read_orientation(opened), self._background)
            except VlcoreError:
                raise
            except Exception as error:  # decoders raise many types on damaged files
                raise ImageError(
                    f"{self._name} is damaged or truncated: {type(error).__name__}: {error}"
                ) from error
        image.info = {}
        return image

    def decode_alike(self, data: bytes, other: bytes, extra_bytes: int) -> Image.Image:
        """Decode a file which must give the same image as another one."""
        image = self.decode(data, extra_bytes)
        self._budget = None
        if ImageChops.difference(image, self.decode(other)).getbbox() is not None:
            raise ImageError(f"{self._name} is damaged or truncated: its last scan is incomplete")
        return image

    def _take_budget(self, image: ImageFile, extra_bytes: int) -> None:
        if self._budget is None:
            return
        num_pixels = image.width * image.height
        extra_bytes += num_pixels * _DECODER_PIXEL_BYTES.get(image.format or "", 0)
        stored = stored_bytes(image.mode, image.size)
        if image.mode != "RGB":
            extra_bytes += stored
        if read_orientation(image) != 1:
            extra_bytes += stored
        self._budget.take(stored_bytes("RGB", image.size), extra_bytes, image.size, self._name)


def _open(data: bytes, name: str, limits: ImageLimits) -> ImageFile:
    file = MeteredFile(data, name, limits.decode_timeout_s)
    try:
        return Image.open(file, formats=_registered(limits))
    except VlcoreError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageLimitError(
            f"{name} is too large: {error}. Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS and "
            "max_pixels of vlcore.ImageLimits"
        ) from error
    except Image.DecompressionBombWarning as error:
        raise ImageLimitError(f"{name} is too large: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} ({len(data)} bytes) is not an image in one of {', '.join(limits.formats)}"
            f"{heif.hint(data)}"
        ) from error
    except Exception as error:  # decoders raise many types on damaged files
        raise ImageError(f"{name} has a damaged header: {type(error).__name__}: {error}") from error


def _registered(limits: ImageLimits) -> list[str]:
    """Return the allowed formats for which a decoder is installed."""
    Image.init()
    heif.register()
    return [name for name in limits.formats if name in Image.OPEN]


def _check_size(image: Image.Image, name: str, limits: ImageLimits) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: it is {width} x {height}")
    if width * height > limits.max_pixels:
        raise ImageLimitError(
            f"{name} is {width} x {height} = {width * height} pixels, more than "
            f"max_pixels={limits.max_pixels} of vlcore.ImageLimits: shrink it or raise the limit"
        )


def _copy_image(
    image: Image.Image, name: str, limits: ImageLimits, background: Color | None
) -> Image.Image:
    _check_size(image, name, limits)
    try:
        image.load()
        copied = _finish(image, read_orientation(image), background)
    except Exception as error:  # decoders raise many types on damaged files
        raise ImageError(
            f"{name} is damaged or truncated: {type(error).__name__}: {error}"
        ) from error
    if copied is image:
        copied = image.copy()
    copied.info = {}
    return copied


def _finish(image: Image.Image, orientation: int, background: Color | None) -> Image.Image:
    """Turn a decoded image upright and convert it to RGB."""
    method = transpose_method(orientation)
    upright = image if method is None else image.transpose(method)
    return to_rgb(upright, background)


def _detach(opened: ImageFile) -> Image.Image:
    """Return the decoded image without its file; the pixels are not copied."""
    return opened._new(opened.im)


def _shrink_on_load(image: JpegImageFile, needed_size: NeededSize, orientation: int) -> None:
    step = -1 if swaps_sides(orientation) else 1
    width, height = image.size[::step]
    if (needed := needed_size((width, height))) is not None:
        least_width, least_height = (math.ceil(side * _SHRINK_MARGIN) for side in needed[::step])
        image.draft(None, (least_width, least_height))
