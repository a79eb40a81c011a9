"""Filesystems of fsspec that fail, for tests whose worker processes import them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class DeadlyFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Ends the process that opens ``deadly.png``, as a decoder may that a file crashes.

    ``once.png`` ends only the first process that opens it.
    """

    protocol = "deadly"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        marker = Path(f"{path}.survived")
        if path.endswith("deadly.png") or (path.endswith("once.png") and not marker.exists()):
            marker.touch()
            os._exit(1)
        return super()._open(path, mode, **options)


class FullFileSystem(LocalFileSystem):  # type: ignore[misc]
    """A disk on which no shard has room."""

    protocol = "full"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb" and "embeddings-" in path:
            raise OSError("no space left on device")
        return super()._open(path, mode, **options)
