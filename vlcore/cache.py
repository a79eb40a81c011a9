"""Image rows by content, least recently used first out, bounded in bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from PIL import Image

from vlcore.vision import ImageRows, VisionModel


class RowCache:
    """Keeps rows of images that were encoded before.

    Args:
        max_bytes: how much the kept rows may take; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._rows: OrderedDict[str, ImageRows] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> ImageRows | None:
        """Look rows up, and mark them as used."""
        rows = self._rows.get(key)
        if rows is not None:
            self._rows.move_to_end(key)
        return rows

    def put(self, key: str, rows: ImageRows) -> None:
        """Keep rows, dropping the least recently used to make room."""
        size = rows.rows.nbytes
        if key in self._rows or size > self.max_bytes:
            return
        self._rows[key] = rows
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            _, dropped = self._rows.popitem(last=False)
            self.num_bytes -= dropped.rows.nbytes


def image_key(image: Image.Image, options: Mapping[str, Any], model: VisionModel) -> str:
    """Digest everything that an image's rows depend on.

    Every field is framed by its length, so that no two different inputs read alike.
    """
    digest = hashlib.sha256()
    fields = (
        model.fingerprint.encode(),
        f"{type(model).__module__}.{type(model).__qualname__}".encode(),
        str(model.dtype).encode(),
        repr(sorted(options.items())).encode(),
        image.mode.encode(),
        repr(image.size).encode(),
        repr((image.getpalette(), image.info.get("transparency"))).encode(),
        image.tobytes(),
    )
    for field in fields:
        digest.update(len(field).to_bytes(8, "little"))
        digest.update(field)
    return digest.hexdigest()
