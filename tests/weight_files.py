"""Writes tensors in the ways that checkpoints store them, and counts what is read of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = Mapping[str, Tensor]


def read_all(directory: Path) -> dict[str, Tensor]:
    """Read a checkpoint's one safetensors file."""
    return load_file(directory / "model.safetensors")


def single_safetensors(directory: Path, tensors: Tensors) -> None:
    save_file(dict(tensors), directory / "model.safetensors")


def single_bin(directory: Path, tensors: Tensors) -> None:
    torch.save(dict(tensors), directory / "pytorch_model.bin")


def sharded_safetensors(directory: Path, tensors: Tensors, *, num_shards: int = 2) -> None:
    pattern = "model-{:05}-of-{:05}.safetensors"
    _sharded(directory, tensors, num_shards, pattern, "model.safetensors.index.json", save_file)


def sharded_bin(directory: Path, tensors: Tensors, *, num_shards: int = 2) -> None:
    pattern = "pytorch_model-{:05}-of-{:05}.bin"
    _sharded(directory, tensors, num_shards, pattern, "pytorch_model.bin.index.json", torch.save)


LAYOUTS = (single_safetensors, sharded_safetensors, single_bin, sharded_bin)


def _sharded(
    directory: Path,
    tensors: Tensors,
    num_shards: int,
    pattern: str,
    index_name: str,
    save: Callable[[dict[str, Tensor], Path], object],
) -> None:
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        filename = pattern.format(shard + 1, num_shards)
        names = sorted(tensors)[shard::num_shards]
        save({name: tensors[name] for name in names}, directory / filename)
        weight_map |= dict.fromkeys(names, filename)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / index_name).write_text(json.dumps(index))


class ReadSpy:
    """Records which tensors are read out of safetensors files, and their bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.num_bytes = 0
        self.files: list[Path] = []
        monkeypatch.setattr("vlcore.checkpoint.weights.safe_open", self._open)

    def _open(self, path: Path, **options: Any) -> _SpiedFile:
        self.files.append(path)
        return _SpiedFile(self, safetensors.safe_open(path, **options))


class _SpiedFile:
    def __init__(self, spy: ReadSpy, file: Any) -> None:
        self._spy = spy
        self._file = file

    def __enter__(self) -> _SpiedFile:
        self._file.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, traceback)

    def offset_keys(self) -> list[str]:
        return list(self._file.offset_keys())

    def get_tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        self._spy.names.append(name)
        self._spy.num_bytes += tensor.nbytes
        return tensor


class FakeHub:
    """A fake of the Hub whose repositories are directories, copied file by file on request."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repositories: dict[str, Path] = {}
        self.requests: list[tuple[str, str | None, list[str]]] = []
        self._cache = cache
        monkeypatch.setattr("huggingface_hub.snapshot_download", self._download)

    def fetched(self, repo_id: str) -> set[str]:
        """Name the files of a repository that have been downloaded."""
        snapshot = self._cache / repo_id
        return {path.relative_to(snapshot).as_posix() for path in files_below(snapshot)}

    def _download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.requests.append((repo_id, revision, allow_patterns))
        if repo_id not in self.repositories:
            raise OSError("no route to the Hub")
        snapshot = self._cache / repo_id
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in files_below(self.repositories[repo_id]):
            name = path.relative_to(self.repositories[repo_id]).as_posix()
            # As the hub's client does, a pattern's star matches folders too.
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                if not (snapshot / name).exists():
                    (snapshot / name).write_bytes(path.read_bytes())
        return str(snapshot)


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]
