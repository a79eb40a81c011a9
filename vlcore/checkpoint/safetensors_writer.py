"""A safetensors file that is written tensor by tensor.

The safetensors library writes a file only from all of its tensors at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlcore.checkpoint.weights import DTYPES, TensorInfo
from vlcore.errors import TensorError

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


class SafetensorsWriter:
    """Writes a safetensors file whose layout is fixed before any of its tensors is read.

    Args:
        tensors: the dtypes and shapes of the tensors that the file will hold.

    Raises:
        TensorError: the format does not support a dtype.

    Source: the format as https://github.com/huggingface/safetensors describes it.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = dict(tensors)
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._starts: dict[str, int] = {}
        end = 0
        # Wide dtypes come first, so that every tensor starts at a multiple of its item size.
        for name, info in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
            if info.dtype not in _DTYPE_NAMES:
                raise TensorError(f"tensor {name!r} is {info.dtype}, which cannot be rewritten")
            self._starts[name], end = end, end + info.num_bytes
            entries[name] = {
                "dtype": _DTYPE_NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [self._starts[name], end],
            }
        encoded = json.dumps(entries, separators=(",", ":")).encode()
        self.header = encoded + b" " * (-len(encoded) % _ALIGNMENT)
        self._base = _ALIGNMENT + len(self.header)
        self.num_bytes = self._base + end

    @contextmanager
    def writing(self, path: Path) -> Iterator[Callable[[str, Tensor], None]]:
        """Open the file, and return a function that writes one tensor, in any order.

        On exit without an error, the file is complete and synchronised to disk.

        Raises:
            OSError: the file cannot be written.
            TensorError: a tensor has another dtype or shape than announced, or was not written.
        """
        missing = set(self.tensors)

        def put(name: str, tensor: Tensor) -> None:
            info = TensorInfo(tensor.dtype, tuple(tensor.shape))
            if info != self.tensors[name]:
                raise TensorError(f"{name!r} in {path} must be {self.tensors[name]}; it is {info}")
            file.seek(self._base + self._starts[name])
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            missing.discard(name)

        with path.open("wb") as file:
            file.write(len(self.header).to_bytes(_ALIGNMENT, "little") + self.header)
            yield put
            if missing:
                raise TensorError(f"{path} was closed without {', '.join(sorted(missing))}")
            file.flush()
            os.fsync(file.fileno())
