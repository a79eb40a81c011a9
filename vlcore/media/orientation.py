"""The orientation of an image, read from EXIF or XMP metadata without parsing the rest of it."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from PIL import Image

_ORIENTATION = 0x0112
_SHORT = 3
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_MAX_XMP_BYTES = 2**20
_METHODS: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(image: Image.Image) -> int:
    """Return the orientation of an opened image, from 1 to 8, in the numbering of EXIF.

    Only this tag is read, because values of other tags can overlap each other and take much memory.
    Metadata that cannot be read means that the orientation is unknown, which counts as 1.
    """
    found = _from_exif(image) or _from_tiff(image) or _from_xmp(image)
    return found if found is not None and found in _METHODS else 1


def transpose_method(orientation: int) -> Image.Transpose | None:
    """Return how to turn an image of this orientation upright; ``None`` if it is upright."""
    return _METHODS.get(orientation)


def swaps_sides(orientation: int) -> bool:
    """Return whether width and height are exchanged when the image is turned upright."""
    return orientation >= 5


def _from_exif(image: Image.Image) -> int | None:
    exif = image.info.get("exif")
    if exif is None:
        profile = image.info.get("Raw profile type exif")  # written by ImageMagick into PNG files
        if not isinstance(profile, str):
            return None
        try:
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            return None
    return orientation_in(exif) if isinstance(exif, bytes) else None


def orientation_in(exif: bytes) -> int | None:
    """Find the orientation in EXIF data; returns ``None`` if there is none, or it is unreadable.

    Source: the EXIF 2.32 and TIFF 6.0 specifications (the first image file directory).
    """
    tiff = memoryview(exif.removeprefix(b"Exif\0\0"))
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return None
    try:
        (offset,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, offset)
        for entry in range(offset + 2, offset + 2 + 12 * num_entries, 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return int(value) if (kind, count) == (_SHORT, 1) else None
    except struct.error:  # the data ends early
        return None
    return None


def _from_tiff(image: Image.Image) -> int | None:
    value = getattr(image, "tag_v2", {}).get(_ORIENTATION)
    return value if isinstance(value, int) else None


def _from_xmp(image: Image.Image) -> int | None:
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp[:_MAX_XMP_BYTES].encode("utf-8", "replace")
    if not isinstance(xmp, bytes):
        return None
    match = _XMP.search(xmp[:_MAX_XMP_BYTES])
    return int(match[1]) if match else None
