"""What the pictures of a request may cost."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from vlcore.errors import ImageLimitError, OptionError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are read; no reader of another one ever sees a file."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost, and all pictures of a request.

    Raises:
        OptionError: a limit is not positive, or a format is unknown.
    """

    max_pixels: int = 89_478_485
    """Width times height, checked from the header before decoding. Pillow has a limit of its
    own at twice ``PIL.Image.MAX_IMAGE_PIXELS``, which holds as well."""
    max_bytes: int = 64 * 1024**2
    """Size of the file or download."""
    connect_timeout_s: float = 10.0
    """To find the server of an http(s) URL, to reach it, and between two pieces of its answer."""
    timeout_s: float = 60.0
    """For a whole download, redirects included."""
    max_redirects: int = 5
    max_images: int = 1000
    """In one request."""
    max_decoded_bytes: int = 4 * 1024**3
    """Of all pictures of a request together, as RGB, from their headers before decoding."""
    formats: tuple[str, ...] = FORMATS
    """Those that are opened."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "formats":
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not value >= 0 or (value == 0 and name != "max_redirects"):
                raise OptionError(f"{name} must be a positive number; it is {value!r}")
        # A text is a sequence of letters, none of which is a format.
        if not self.formats or set(self.formats) - set(FORMATS):
            raise OptionError(
                f"formats must be some of {', '.join(FORMATS)}; it is {self.formats!r}"
            )


DEFAULT_LIMITS = ImageLimits()


@dataclass
class DecodedBudget:
    """What the pictures of one request may still take when they are decoded."""

    limits: ImageLimits
    _taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, width: int, height: int, name: str) -> None:
        """Count a picture before it is decoded.

        Raises:
            ImageLimitError: it would be too much for the request.
        """
        with self._lock:
            self._taken += width * height * 3
            if self._taken <= self.limits.max_decoded_bytes:
                return
        raise ImageLimitError(
            f"{name} is {width} x {height}, and the pictures of its request together are more "
            f"than max_decoded_bytes={self.limits.max_decoded_bytes} of vlcore.ImageLimits"
        )
