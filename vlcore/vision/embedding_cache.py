"""``EmbeddingCache``: an LRU cache of image embeddings by content, limited in bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from vlcore.media.video import Video, VideoSampling
from vlcore.vision.model import ImageRows, VisionModel

_MAX_FILES = 16384
_STRIP_PIXELS = 2**20
"""Images are read in strips of this size at most, so that a large one holds up no other thread."""


class EmbeddingCache:
    """A cache of the embeddings of images that were encoded before. Thread-safe.

    Embeddings are stored by the key of the image's pixels. The key of a file is linked to it, so
    that a file does not need to be decoded again.

    Args:
        max_bytes: maximum size of the cached embeddings; 0 disables the cache.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._rows: OrderedDict[str, ImageRows] = OrderedDict()
        self._files: OrderedDict[str, str] = OrderedDict()
        """The key of the pixels, by the key of the file."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> ImageRows | None:
        """Return embeddings by the key of the pixels or of a file, and mark them as used."""
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                key = self._files[key]
            rows = self._rows.get(key)
            if rows is not None:
                self._rows.move_to_end(key)
            return rows

    def put(self, key: str, rows: ImageRows) -> None:
        """Store embeddings, and drop the least recently used ones to make room."""
        size = rows.rows.nbytes
        with self._lock:
            if key in self._rows or size > self.max_bytes:
                return
            self._rows[key] = rows
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                _, evicted = self._rows.popitem(last=False)
                self.num_bytes -= evicted.rows.nbytes

    def pixel_key(self, key: str) -> str:
        """Return the key of the pixels for the key of a file, or for that of pixels."""
        with self._lock:
            return self._files.get(key, key)

    def link(self, file: str, key: str) -> None:
        """Link the key of a file to the key of its pixels."""
        with self._lock:
            self._files[file] = key
            if len(self._files) > _MAX_FILES:
                self._files.popitem(last=False)


def image_key(image: Image.Image, options: Mapping[str, Any], model: VisionModel) -> str:
    """Return a digest of everything that an image's embeddings depend on."""
    digest = _hash(
        *_settings(options, model),
        b"pixels",
        image.mode.encode(),
        repr(image.size).encode(),
        repr((image.getpalette(), image.info.get("transparency"))).encode(),
    )
    for strip in _strips(image):
        digest.update(strip.tobytes())
    return digest.hexdigest()


def file_key(
    data: bytes,
    options: Mapping[str, Any],
    model: VisionModel,
    *,
    shrink_on_load: bool = False,
    background: str | None = None,
) -> str:
    """Return a digest of everything that the embeddings of an image file depend on.

    The file is not decoded.
    """
    kind = b"file shrunk on load" if shrink_on_load else b"file"
    settings = _settings(options, model)
    return _digest(*settings, repr(background).encode(), kind, data)


def video_key(video: Video, options: Mapping[str, Any], model: VisionModel) -> str:
    """Return a digest of everything that a video's embeddings depend on."""
    return _digest(*_settings(options, model), b"video", video.key.encode())


def video_file_key(
    data: bytes, sampling: VideoSampling, options: Mapping[str, Any], model: VisionModel
) -> str:
    """Return a digest of everything that the embeddings of a video file depend on.

    The file is not decoded.
    """
    settings = _settings(options, model)
    return _digest(*settings, b"video file", repr(sampling).encode(), data)


def model_key(model: VisionModel) -> str:
    """Return a digest of everything that embeddings depend on except the image and its options."""
    return _digest(*_settings({}, model))


def _settings(options: Mapping[str, Any], model: VisionModel) -> tuple[bytes, ...]:
    return (
        model.fingerprint.encode(),
        f"{type(model).__module__}.{type(model).__qualname__}".encode(),
        str(model.dtype).encode(),
        repr(model.preprocess_settings).encode(),
        repr(sorted(options.items())).encode(),
    )


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    """Cut an image into strips of a few rows; between two of them, other threads can run."""
    height = max(1, _STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, height):
        yield image.crop((0, top, image.width, min(top + height, image.height)))


def _digest(*fields: bytes) -> str:
    return _hash(*fields).hexdigest()


def _hash(*fields: bytes) -> hashlib._Hash:
    """Hash fields, each preceded by its length so that the input is unambiguous."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest
