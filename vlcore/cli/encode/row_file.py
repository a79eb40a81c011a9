"""The embeddings of many images in one safetensors file, which a later run can extend."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlcore.errors import OptionError


class RowFile:
    """Image embeddings by image name, each with the key of the image's content.

    Args:
        path: the file. If it exists, it is read.
        model: the key of the vision model that computes the embeddings.
        row_width: the width of an embedding.

    Raises:
        OptionError: the file cannot be used, or contains embeddings of another model.
    """

    def __init__(self, path: Path, model: str, row_width: int) -> None:
        self.path = path
        self._row_width = row_width
        self._model = model
        self._rows: dict[str, tuple[str, Tensor]] = {}
        """The content key and the embeddings of each image name."""
        self._num_saved = 0
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, name: str, key: str) -> bool:
        """Whether the file contains an image with this name and content."""
        return name in self._rows and self._rows[name][0] == key

    def put(self, name: str, key: str, rows: Tensor) -> None:
        """Add the embeddings of an image, replacing earlier ones."""
        self._rows[name] = (
            key,
            rows.to("cpu", copy=True),
        )  # safetensors refuses tensors that share memory

    def save(self) -> None:
        """Replace the file atomically. Embeddings may be added at the same time.

        Raises:
            OptionError: the file cannot be written.
        """
        entries = dict(self._rows)
        keys = {name: key for name, (key, _) in entries.items()}
        metadata = {"format": "pt", "model": self._model, "keys": json.dumps(keys)}
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            save_file({name: rows for name, (_, rows) in entries.items()}, partial, metadata)
            os.replace(partial, self.path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise OptionError(f"{str(self.path)!r} cannot be written: {error}") from error
        self._num_saved = len(entries)

    @property
    def is_due(self) -> bool:
        """Whether so many embeddings are unsaved that saving is worth its cost."""
        return len(self._rows) >= max(2 * self._num_saved, 64)

    def _read(self) -> None:
        try:
            with safe_open(self.path, "pt") as opened:
                metadata = opened.metadata() or {}
                keys = json.loads(metadata["keys"])
                if metadata["model"] != self._model:
                    raise OptionError(
                        f"{str(self.path)!r} contains embeddings of another model or dtype: choose "
                        "another --out"
                    )
                for name in keys:
                    _, *width = opened.get_slice(name).get_shape()
                    if width != [self._row_width]:
                        raise OptionError(
                            f"{str(self.path)!r} contains embeddings of the width {width}, and "
                            f"those of this model have {self._row_width}: choose another --out"
                        )
                self._rows = {name: (key, opened.get_tensor(name)) for name, key in keys.items()}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(
                f"{str(self.path)!r} is not a file of image embeddings: choose another --out "
                f"({type(error).__name__}: {error})"
            ) from error
        self._num_saved = len(self._rows)
