"""HEIF and HEIC images, as iPhones write them, through the optional package pillow-heif."""

from __future__ import annotations

from functools import cache

_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@cache
def register() -> bool:
    """Register pillow-heif with Pillow; returns whether it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    options = pillow_heif.options
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    options.DECODE_THREADS = 1
    pillow_heif.register_heif_opener()
    return True


def hint(data: bytes) -> str:
    """Return what to install, if the data is a HEIF image that cannot be read; or an empty text."""
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS and not register():
        return ". HEIC images need the package pillow-heif: pip install 'vlcore[heif]'"
    return ""
