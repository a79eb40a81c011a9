"""Reads tensors from one weight file, and builds modules that are to be filled with them."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vlcore.errors import TensorError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes by their names in safetensors files."""

_MAX_NAMES_IN_MESSAGE = 20
_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library. A damaged file may claim much more."""
_building = threading.Lock()


def shorten(names: Sequence[str]) -> str:
    """Join names for a message; all but the first twenty are only counted."""
    shown = ", ".join(names[:_MAX_NAMES_IN_MESSAGE])
    num_more = len(names) - _MAX_NAMES_IN_MESSAGE
    return f"{shown} and {num_more} more" if num_more > 0 else shown


@contextmanager
def empty_weights() -> Iterator[None]:
    """Build modules whose parameters take no memory, to be filled by ``Checkpoint.load_module``.

    Buffers are computed as usual. Only one thread at a time can be inside this context, because
    accelerate patches torch for its duration.
    """
    from accelerate import init_empty_weights

    with _building, init_empty_weights(include_buffers=False):
        yield


def move_buffers(
    module: nn.Module, names: Iterable[str], device_of: Callable[[str], torch.device]
) -> None:
    """Move buffers that a module computed itself; their dtypes stay as they are.

    Args:
        module: the module that holds them, directly or in one of its submodules.
        names: the buffers' names.
        device_of: returns the device of a buffer, given its name.

    Raises:
        TensorError: a buffer has no values, because it was built on the meta device.
    """
    for name in names:
        buffer, device = module.get_buffer(name), device_of(name)
        if buffer.is_meta and device.type != "meta":
            raise TensorError(
                f"the buffer {name!r} of {type(module).__name__} has no values: no checkpoint "
                "holds it, and it was built on the meta device. Build the module inside "
                "vlcore.empty_weights(), which computes buffers"
            )
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, buffer.to(device))


_LFS_POINTER = b"version https://git-lfs"
"""Beginning of the file that Git stores instead of a large one."""


@dataclass(frozen=True)
class TensorInfo:
    """The dtype and shape of a tensor, known before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """The size of the tensor's values."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorReader:
    """Reads tensors from one open weight file.

    Args:
        path: the file.
        names: the names of its tensors, in the order in which the file stores them.
        read: reads a tensor, given its name.
        describe: returns the dtype and shape of a tensor without reading it; ``None`` if the
            format does not allow that.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        read: Callable[[str], Any],
        describe: Callable[[str], TensorInfo] | None = None,
    ) -> None:
        self.path = path
        self.names = names
        self._read = read
        self._describe = describe

    def in_file_order(self, names: Iterable[str]) -> list[str]:
        """Sort names in the order of the file; names that it does not hold come first."""
        positions = {name: position for position, name in enumerate(self.names)}
        return sorted(names, key=lambda name: positions.get(name, -1))

    def __call__(self, name: str) -> Tensor:
        """Read a tensor.

        Raises:
            TensorError: the tensor cannot be read.
        """
        try:
            tensor = self._read(name)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise TensorError(
                f"tensor {name!r} cannot be read from {self.path}: {error}"
            ) from error
        if not isinstance(tensor, Tensor):
            raise TensorError(
                f"{name!r} in {self.path} is not a tensor but a {type(tensor).__name__}"
            )
        return tensor

    def describe(self, name: str) -> TensorInfo:
        """Return a tensor's dtype and shape, without reading it if the format allows that.

        Raises:
            TensorError: the file does not hold the tensor, or holds it in an unknown dtype.
        """
        if self._describe is not None:
            return self._describe(name)
        tensor = self(name)
        return TensorInfo(tensor.dtype, tuple(tensor.shape))


@contextmanager
def open_weights(path: Path) -> Iterator[TensorReader]:
    """Open a weight file; a tensor is read when it is requested.

    Raises:
        TensorError: the file is missing or damaged, or is a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise TensorError(f"weight file {path} is missing: the download may be incomplete")
    if path.suffix == ".bin":
        state = _load_pickle(path)
        yield TensorReader(path, list(state), state.__getitem__)
        return
    try:
        # Memory-mapping an uncached header makes the kernel read far ahead: read it into memory.
        header = read_header(path)
        # A tensor that is read, not mapped, takes its memory once and outlives the file.
        file = safe_open(path, framework="pt", backend="pread")
    except (SafetensorError, OSError) as error:
        raise TensorError(
            f"{path} is damaged or truncated ({path.stat().st_size} bytes): {error}. "
            f"{_what_to_do(path)}"
        ) from error
    with file as opened:
        names = list(opened.offset_keys())
        yield TensorReader(path, names, opened.get_tensor, _Headers(path, header))


class _Headers:
    """Describes tensors by the header of their safetensors file, which is parsed on first use."""

    def __init__(self, path: Path, header: bytes) -> None:
        self._path = path
        self._header = header

    @cached_property
    def _entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = json.loads(self._header)
        return entries

    def __call__(self, name: str) -> TensorInfo:
        try:
            entry = self._entries[name]
            return TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"]))
        except KeyError as error:
            raise TensorError(
                f"tensor {name!r} of {self._path} cannot be described: {error} is not known"
            ) from error


def read_header(path: Path) -> bytes:
    """Read the header of a safetensors file, and none of its tensors.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, path.stat().st_size, _MAX_HEADER_BYTES))


def _what_to_do(path: Path) -> str:
    """Return how to replace a weight file that cannot be read."""
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return "It is a pointer of Git LFS: run git lfs pull in its repository"
    return "Download it again"


def _load_pickle(path: Path) -> dict[str, Any]:
    """Read a ``.bin`` shard; ``weights_only`` prevents a pickle from running code."""
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be memory-mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TensorError(
            f"{path} is damaged, or holds more than plain tensors ({path.stat().st_size} bytes): "
            f"{type(error).__name__}: {error}. {_what_to_do(path)}, or convert it to safetensors"
        ) from error
    if not isinstance(state, dict):
        raise TensorError(f"{path} must hold a dictionary of tensors, not {type(state).__name__}")
    return state
