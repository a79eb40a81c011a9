"""The kinds of media files, and the limits that files of every kind have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from vlcore.errors import (
    ImageDownloadError,
    ImageError,
    ImageLimitError,
    VideoDownloadError,
    VideoError,
    VideoLimitError,
)


@dataclass(frozen=True)
class MediaKind:
    """What messages call a file, and the errors that it raises."""

    noun: str
    """With an article, such as ``"an image"``."""
    accepts: str
    """The sources that are accepted."""
    media_types: Mapping[str, str]
    """The media type of files whose base64 text begins like a key; the first one is an example."""
    error: type[ImageError] | type[VideoError]
    download_error: type[ImageDownloadError] | type[VideoDownloadError]
    limit_error: type[ImageLimitError] | type[VideoLimitError]
    limits: str
    """The public name of the limits."""

    @property
    def example(self) -> str:
        """A ``data:`` URL, shortened."""
        return f"data:{next(iter(self.media_types.values()))};base64,…"


IMAGE = MediaKind(
    noun="an image",
    accepts="a path, a URL, bytes or a PIL image",
    media_types={
        "iVBORw0KGgo": "image/png",
        "/9j/": "image/jpeg",
        "R0lGOD": "image/gif",
        "UklGR": "image/webp",
    },
    error=ImageError,
    download_error=ImageDownloadError,
    limit_error=ImageLimitError,
    limits="vlcore.ImageLimits",
)

VIDEO = MediaKind(
    noun="a video",
    accepts="a path, a URL, bytes, a list of frames or a vlcore.Video",
    media_types={
        "AAAA": "video/mp4",
        "GkXfo": "video/webm",
        "UklGR": "video/x-msvideo",
        "R0lGOD": "image/gif",
    },
    error=VideoError,
    download_error=VideoDownloadError,
    limit_error=VideoLimitError,
    limits="vlcore.VideoLimits",
)


class FileLimits(Protocol):
    """The limits of reading, downloading and decoding a file."""

    kind: ClassVar[MediaKind]

    @property
    def max_bytes(self) -> int:
        """Size of the file, in bytes."""

    @property
    def connect_timeout_s(self) -> float:
        """Time to resolve a host, to connect, and between two chunks of a response, in seconds."""

    @property
    def timeout_s(self) -> float:
        """Time for a whole download, in seconds."""

    @property
    def max_redirects(self) -> int:
        """Number of redirects that a download follows."""

    @property
    def max_decoded_bytes(self) -> int:
        """Memory of what the files of a request are decoded to, in bytes."""
