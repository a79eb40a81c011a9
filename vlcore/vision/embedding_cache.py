"""Image rows by content, least recently used first out, bounded in bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from PIL import Image

from vlcore.vision.model import ImageRows, VisionModel

_MAX_FILES = 16384


class EmbeddingCache:
    """Keeps rows of images that were encoded before. Thread-safe.

    Rows are kept by the key of their pixels. The key of a file leads to them without decoding it.

    Args:
        max_bytes: how much the kept rows may take; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._rows: OrderedDict[str, ImageRows] = OrderedDict()
        self._files: OrderedDict[str, str] = OrderedDict()
        """From a file's key to that of its pixels."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> ImageRows | None:
        """Look rows up by the key of their pixels or of a file, and mark them as used."""
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                key = self._files[key]
            rows = self._rows.get(key)
            if rows is not None:
                self._rows.move_to_end(key)
            return rows

    def put(self, key: str, rows: ImageRows) -> None:
        """Keep rows, dropping the least recently used to make room."""
        size = rows.rows.nbytes
        with self._lock:
            if key in self._rows or size > self.max_bytes:
                return
            self._rows[key] = rows
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                _, dropped = self._rows.popitem(last=False)
                self.num_bytes -= dropped.rows.nbytes

    def link(self, file: str, key: str) -> None:
        """Let a file's key lead to that of its pixels."""
        with self._lock:
            self._files[file] = key
            if len(self._files) > _MAX_FILES:
                self._files.popitem(last=False)


def image_key(image: Image.Image, options: Mapping[str, Any], model: VisionModel) -> str:
    """Digest everything that an image's rows depend on."""
    return _digest(
        *_settings(options, model),
        b"pixels",
        image.mode.encode(),
        repr(image.size).encode(),
        repr((image.getpalette(), image.info.get("transparency"))).encode(),
        image.tobytes(),
    )


def file_key(
    data: bytes, options: Mapping[str, Any], model: VisionModel, *, shrink_on_load: bool = False
) -> str:
    """Digest everything that the rows of a picture in a file depend on, without decoding it."""
    how = b"file shrunk on load" if shrink_on_load else b"file"
    return _digest(*_settings(options, model), how, data)


def model_key(model: VisionModel) -> str:
    """Digest everything that rows depend on beside the image and its options."""
    return _digest(*_settings({}, model))


def _settings(options: Mapping[str, Any], model: VisionModel) -> tuple[bytes, ...]:
    return (
        model.fingerprint.encode(),
        f"{type(model).__module__}.{type(model).__qualname__}".encode(),
        str(model.dtype).encode(),
        repr(model.preprocess_settings).encode(),
        repr(sorted(options.items())).encode(),
    )


def _digest(*fields: bytes) -> str:
    """Digest fields, each framed by its length, so that no two different inputs read alike."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest.hexdigest()
