"""The rows of many images in one safetensors file, which a later run goes on with."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlcore.errors import OptionError


class RowFile:
    """Rows by the name of their image, each with the key of the content they were made from.

    Args:
        path: the file; what it holds already is read.
        model: the key of the model that makes the rows.

    Raises:
        OptionError: the file cannot be used, or holds rows of another model.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self._model = model
        self._rows: dict[str, tuple[str, Tensor]] = {}
        """The key and the rows of each name."""
        self._num_saved = 0
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._rows)

    def has(self, name: str, key: str) -> bool:
        """Tell whether an image with this content is there."""
        return name in self._rows and self._rows[name][0] == key

    def put(self, name: str, key: str, rows: Tensor) -> None:
        """Add the rows of an image, in place of earlier ones."""
        self._rows[name] = key, rows.to("cpu", copy=True)  # equal images must not share memory

    def save(self) -> None:
        """Write the file whole, or leave it as it was. Rows may be added meanwhile.

        Raises:
            OptionError: it cannot be written.
        """
        held = dict(self._rows)
        keys = {name: key for name, (key, _) in held.items()}
        metadata = {"format": "pt", "model": self._model, "keys": json.dumps(keys)}
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            save_file({name: rows for name, (_, rows) in held.items()}, partial, metadata)
            os.replace(partial, self.path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise OptionError(f"{str(self.path)!r} cannot be written: {error}") from error
        self._num_saved = len(held)

    @property
    def is_due(self) -> bool:
        """Whether half of it would be lost: writing then costs little beside what was done."""
        return len(self._rows) >= max(2 * self._num_saved, 64)

    def _read(self) -> None:
        try:
            with safe_open(self.path, "pt") as opened:
                metadata = opened.metadata() or {}
                keys = json.loads(metadata["keys"])
                if metadata["model"] != self._model:
                    raise OptionError(
                        f"{str(self.path)!r} holds rows of another model or dtype: give --out "
                        "another name"
                    )
                self._rows = {name: (key, opened.get_tensor(name)) for name, key in keys.items()}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(
                f"{str(self.path)!r} is there and is no file of rows: give --out another name "
                f"({type(error).__name__}: {error})"
            ) from error
        self._num_saved = len(self._rows)
