"""A checkpoint that reads only the headers of its weight files: sizes without weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.weight_index import WEIGHT_FILES
from vlcore.checkpoint.weights import DTYPES, TensorInfo, open_weights, read_header, shorten
from vlcore.errors import CheckpointNotFoundError, TensorError


@dataclass(frozen=True)
class UsedTensor:
    """A tensor that was requested while a stage was loaded."""

    file: Path
    num_stored_bytes: int
    """In the stored dtype."""
    num_bytes: int
    """In the requested dtype."""


class HeaderCheckpoint(Checkpoint):
    """A checkpoint whose tensors have a dtype and a shape, on the meta device, and no values.

    The tensors that are requested from it are recorded in :attr:`used`. The weights of a Hub
    repository are not downloaded, only the headers of files that are not in the local cache.

    Args:
        directory: the directory of the files.
        name: the name of the checkpoint in messages.
        fetch: as for :class:`~vlcore.checkpoint.Checkpoint`; never called for weights.
        repository: the id of the Hub repository and its root directory in the local cache;
            ``None`` for a local directory.
        used: the record of requested tensors, shared with the checkpoints that this one refers to.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str | None = None,
        fetch: Callable[[Sequence[str]], object] | None = None,
        repository: tuple[str, Path] | None = None,
        used: dict[tuple[str, str], UsedTensor] | None = None,
    ) -> None:
        super().__init__(directory, name=name, fetch=fetch)
        self._repository = repository
        self._headers: dict[Path, dict[str, Tensor]] = {}
        self.used: dict[tuple[str, str], UsedTensor] = {} if used is None else used
        """The requested tensors, by the checkpoint's name and the tensor's."""

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Create a header checkpoint for an opened checkpoint."""
        return cls(
            checkpoint.directory,
            name=checkpoint.name,
            fetch=checkpoint._fetch,
            repository=(checkpoint.name, checkpoint.directory) if checkpoint.is_remote else None,
        )

    def related(self, reference: str) -> Checkpoint:
        """Open a checkpoint that this one refers to, in the same way."""
        found = HeaderCheckpoint.from_checkpoint(super().related(reference))
        if self._repository is not None and found.directory.is_relative_to(self.directory):
            found._repository = self._repository
        found.used = self.used
        return found

    def tensors(
        self,
        names: Iterable[str],
        *,
        device: torch.device | str = "meta",  # noqa: ARG002
        dtype: torch.dtype | None = None,
        progress: bool = False,  # noqa: ARG002
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield tensors without values, all of them on the meta device."""
        for name in self._known(names):
            stored = self._stored(name)
            keeps_dtype = dtype is None or not stored.is_floating_point()
            tensor = stored if keeps_dtype else stored.to(dtype)
            self.used[self.name, name] = UsedTensor(
                self.file_of(name), stored.nbytes, tensor.nbytes
            )
            yield name, tensor

    def tensor_infos(self, names: Iterable[str]) -> dict[str, TensorInfo]:
        """Return dtypes and shapes; only headers are downloaded from a Hub repository."""
        tensors = {name: self._stored(name) for name in self._known(names)}
        return {
            name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
        }

    def fetch_files(self, paths: Iterable[Path]) -> None:
        """Do nothing: weights are not read."""

    @cached_property
    def _weight_files(self) -> Mapping[str, Path]:
        indexes = [f"{name}.index.json" for name in WEIGHT_FILES]
        is_local = any((self.directory / name).exists() for name in (*WEIGHT_FILES, *indexes))
        if is_local or self._repository is None:
            return super()._weight_files
        path = self.directory / WEIGHT_FILES[0]
        return dict.fromkeys(self._header(path), path)

    def _known(self, names: Iterable[str]) -> list[str]:
        """Remove duplicates from names.

        Raises:
            TensorError: the checkpoint has no tensors of some names, which are listed.
        """
        requested = list(dict.fromkeys(names))
        if missing := [name for name in requested if name not in self._weight_files]:
            raise TensorError(f"{self.name} lacks {len(missing)} tensor(s): {shorten(missing)}")
        return requested

    def _stored(self, name: str) -> Tensor:
        """Return a tensor in its stored dtype, without values."""
        path = self.file_of(name)
        header = self._header(path)
        if name not in header:
            raise TensorError(f"{path} lacks the tensor {name!r}, which the index assigns to it")
        return header[name]

    def _header(self, path: Path) -> Mapping[str, Tensor]:
        """Return the tensors of a weight file by name, without values."""
        if path not in self._headers:
            if path.exists() or self._repository is None:
                self._headers[path] = _read_local(path)
            else:
                self._headers[path] = _read_from_hub(path, *self._repository)
        return self._headers[path]


def _read_local(path: Path) -> dict[str, Tensor]:
    with open_weights(path) as reader:  # raises a clear error for a damaged file
        if path.suffix != ".safetensors":
            return {name: reader(name).to("meta") for name in reader.names}
        entries: dict[str, Any] = json.loads(read_header(path))
    return {
        name: _empty(name, entry["dtype"], entry["shape"], path)
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def _read_from_hub(path: Path, repo_id: str, root: Path) -> dict[str, Tensor]:
    from huggingface_hub import HfApi

    filename = path.relative_to(root).as_posix()
    try:
        header = HfApi().parse_safetensors_file_metadata(repo_id, filename, revision=root.name)
    except Exception as error:  # the Hub client raises many unrelated types
        raise CheckpointNotFoundError(
            f"the header of {filename} in the Hub repository {repo_id!r} cannot be read: "
            f"{type(error).__name__}: {error}"
        ) from error
    return {
        name: _empty(name, info.dtype, info.shape, path) for name, info in header.tensors.items()
    }


def _empty(name: str, dtype: str, shape: Sequence[int], path: Path) -> Tensor:
    if dtype not in DTYPES:
        raise TensorError(
            f"tensor {name!r} of {path} has the dtype {dtype}; known are {', '.join(DTYPES)}"
        )
    return torch.empty(tuple(shape), dtype=DTYPES[dtype], device="meta")
