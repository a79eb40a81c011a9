"""A checkpoint by the headers of its weight files: what a model takes, without reading weights."""

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
from vlcore.checkpoint.weights import DTYPES, TensorInfo, open_weights, read_header
from vlcore.errors import CheckpointNotFoundError, TensorError

_MAX_NAMES_IN_MESSAGE = 20
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class UsedTensor:
    """A tensor that a stage asked for."""

    file: Path
    num_stored_bytes: int
    num_bytes: int
    """In the dtype that it was asked for."""


class HeaderCheckpoint(Checkpoint):
    """A checkpoint whose tensors have a dtype and a shape, on the meta device, and no values.

    Whoever loads a stage from it is taken note of: see :attr:`used`. Of a hub repository no
    weights are fetched, only their headers where they are not there.

    Args:
        directory: where the files lie.
        name: what messages call the checkpoint.
        fetch: as for :class:`~vlcore.checkpoint.Checkpoint`; never called for weights.
        repository: the hub repository, and the folder that is its top; ``None`` of a directory.
        used: what was asked for so far, here and in the checkpoints that this one names.
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
        """By the checkpoint's name and the tensor's."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """Look at an opened checkpoint by its headers."""
        return cls(
            checkpoint.directory,
            name=checkpoint.name,
            fetch=checkpoint._fetch,
            repository=(checkpoint.name, checkpoint.directory) if checkpoint.is_remote else None,
        )

    def related(self, reference: str) -> Checkpoint:
        """Open a checkpoint that this one names, in the same way."""
        found = HeaderCheckpoint.of(super().related(reference))
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
        """Give tensors without values, all of them on the meta device."""
        for name in self._known(names):
            stored = self._stored(name)
            keeps = dtype is None or not stored.is_floating_point()
            tensor = stored if keeps else stored.to(dtype)
            self.used[self.name, name] = UsedTensor(
                self.file_of(name), stored.nbytes, tensor.nbytes
            )
            yield name, tensor

    def tensor_infos(self, names: Iterable[str]) -> dict[str, TensorInfo]:
        """Tell dtypes and shapes; of a hub repository, from headers that are fetched alone."""
        found = {name: self._stored(name) for name in self._known(names)}
        return {name: TensorInfo(one.dtype, tuple(one.shape)) for name, one in found.items()}

    def fetch_files(self, paths: Iterable[Path]) -> None:
        """Fetch nothing: weights are not read."""

    @cached_property
    def _weight_files(self) -> Mapping[str, Path]:
        indexes = [f"{name}.index.json" for name in _WEIGHT_FILES]
        is_here = any((self.directory / name).exists() for name in (*_WEIGHT_FILES, *indexes))
        if is_here or self._repository is None:
            return super()._weight_files
        path = self.directory / _WEIGHT_FILES[0]
        return dict.fromkeys(self._header(path), path)

    def _known(self, names: Iterable[str]) -> list[str]:
        """Give each name once.

        Raises:
            TensorError: some are missing; each is listed.
        """
        wanted = list(dict.fromkeys(names))
        if missing := [name for name in wanted if name not in self._weight_files]:
            listed = ", ".join(missing[:_MAX_NAMES_IN_MESSAGE])
            raise TensorError(f"{self.name} lacks {len(missing)} tensor(s): {listed}")
        return wanted

    def _stored(self, name: str) -> Tensor:
        """Give a tensor as it is stored, without its values."""
        path = self.file_of(name)
        header = self._header(path)
        if name not in header:
            raise TensorError(f"{path} lacks the tensor {name!r}, which the index places there")
        return header[name]

    def _header(self, path: Path) -> Mapping[str, Tensor]:
        """Give the tensors of a weight file, without values."""
        if path not in self._headers:
            if path.exists() or self._repository is None:
                self._headers[path] = _read_here(path)
            else:
                self._headers[path] = _read_from_hub(path, *self._repository)
        return self._headers[path]


def _read_here(path: Path) -> dict[str, Tensor]:
    with open_weights(path) as read:  # which says what is wrong with a damaged file
        if path.suffix != ".safetensors":
            return {name: read(name).to("meta") for name in read.names}
        entries: dict[str, Any] = json.loads(read_header(path))
    return {
        name: _empty(name, entry["dtype"], entry["shape"], path)
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def _read_from_hub(path: Path, repository: str, top: Path) -> dict[str, Tensor]:
    from huggingface_hub import HfApi

    filename = path.relative_to(top).as_posix()
    try:
        header = HfApi().parse_safetensors_file_metadata(repository, filename, revision=top.name)
    except Exception as error:  # the hub client raises many unrelated types
        raise CheckpointNotFoundError(
            f"the sizes in {filename} of the hub repository {repository!r} cannot be told before "
            f"it is downloaded: {type(error).__name__}: {error}"
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
