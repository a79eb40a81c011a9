from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_json
from small_checkpoint import Writer, read, write_checkpoint
from weight_files import (
    LAYOUTS,
    sharded_bin,
    sharded_safetensors,
)

from vlcore import Checkpoint
from vlcore.errors import ConfigError, TensorError


def test_no_weights(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    with pytest.raises(
        TensorError, match=r"holds no weights: expected model\.safetensors, pytorch"
    ):
        Checkpoint.open(tmp_path).tensor_names  # noqa: B018


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "config.json", {})
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(TensorError, match="It is a pointer of Git LFS: run git lfs pull"):
        Checkpoint.open(tmp_path).tensor_names  # noqa: B018


@pytest.mark.parametrize("write", [sharded_safetensors, sharded_bin])
def test_a_missing_shard_is_named(tmp_path: Path, write: Writer) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, write))
    shard = checkpoint.file_of("b.counts")
    shard.unlink()
    with pytest.raises(TensorError, match="is missing: the download may be incomplete") as caught:
        read(checkpoint)
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize("num_bytes", [0, 5, 40, -1])
def test_a_truncated_file_is_named(tmp_path: Path, write: Writer, num_bytes: int) -> None:
    write_checkpoint(tmp_path, write)
    file = sorted(path for path in tmp_path.iterdir() if path.suffix != ".json")[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:num_bytes])
    with pytest.raises(TensorError, match="damaged") as caught:
        read(Checkpoint.open(tmp_path))
    assert str(file) in str(caught.value)
    assert f"({file.stat().st_size} bytes)" in str(caught.value)


class _RunsCode:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    write_json(tmp_path / "config.json", {})
    harm = tmp_path / "harm"
    state = {"a": torch.zeros(1), "b": _RunsCode(str(harm))}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(TensorError, match="holds more than plain tensors"):
        read(Checkpoint.open(tmp_path))
    assert not harm.exists()


def test_a_pickle_that_is_not_a_dictionary(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(TensorError, match="must hold a dictionary of tensors, not list"):
        read(Checkpoint.open(tmp_path))


def test_a_pickle_with_something_else_among_the_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(TensorError, match="'epoch'"):
        read(Checkpoint.open(tmp_path))


def test_missing_names_are_listed_and_shortened(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    with pytest.raises(TensorError, match=r"lacks 2 tensor\(s\): c, d$"):
        dict(checkpoint.tensors(["c", "a.bias", "d"]))
    with pytest.raises(TensorError, match=r"lacks 30 tensor\(s\): x0, .*, x19 and 10 more$"):
        dict(checkpoint.tensors([f"x{i}" for i in range(30)]))
    with pytest.raises(TensorError, match=r"'c' is missing from .*, which has 4 tensors"):
        checkpoint.file_of("c")


@pytest.mark.parametrize("write", [sharded_safetensors, sharded_bin])
def test_an_index_that_names_the_wrong_file_is_reported(tmp_path: Path, write: Writer) -> None:
    write_checkpoint(tmp_path, write)
    path = next(tmp_path.glob("*.index.json"))
    index = json.loads(path.read_text())
    index["weight_map"]["a.bias"], index["weight_map"]["a.weight"] = (
        index["weight_map"]["a.weight"],
        index["weight_map"]["a.bias"],
    )
    write_json(path, index)
    with pytest.raises(TensorError, match=r"tensor 'a\.(bias|weight)' cannot be read from"):
        read(Checkpoint.open(tmp_path))


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_map_is_reported(tmp_path: Path, index: dict[str, Any]) -> None:
    write_json(tmp_path / "model.safetensors.index.json", index)
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json has no weight_map"):
        Checkpoint.open(tmp_path).tensor_names  # noqa: B018


def test_an_index_cannot_reach_a_file_outside_the_checkpoint(tmp_path: Path) -> None:
    outside = write_checkpoint(tmp_path / "outside")
    inside = tmp_path / "inside"
    inside.mkdir()
    weight_map = {"a.bias": str(outside / "model.safetensors"), "b": "../outside/model.safetensors"}
    write_json(inside / "model.safetensors.index.json", {"weight_map": weight_map})
    checkpoint = Checkpoint.open(inside)
    assert checkpoint.file_of("a.bias") == inside / "model.safetensors"
    assert checkpoint.file_of("b") == inside / "model.safetensors"
