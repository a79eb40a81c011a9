from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import write_json
from torch import Tensor
from weight_files import sharded_bin, sharded_safetensors, single_bin, single_safetensors

from vlcore import Checkpoint
from vlcore.checkpoint.weights import read_header
from vlcore.errors import ConfigError, TensorError

TENSORS: dict[str, Tensor] = {name: torch.ones(2) for name in "abcd"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", {})
    return tmp_path


def files_of(directory: Path) -> set[str]:
    checkpoint = Checkpoint.open(directory)
    return {checkpoint.file_of(name).name for name in checkpoint.tensor_names}


def remove_shards(directory: Path, pattern: str) -> None:
    for path in directory.glob(pattern):
        path.unlink()


def test_a_single_file_takes_precedence_over_a_left_over_index(directory: Path) -> None:
    sharded_safetensors(directory, TENSORS)
    single_safetensors(directory, TENSORS)
    assert files_of(directory) == {"model.safetensors"}
    remove_shards(directory, "model-0*")
    assert files_of(directory) == {"model.safetensors"}


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"metadata": {}}'])
def test_a_damaged_index_next_to_a_single_file_is_ignored(
    directory: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    single_safetensors(directory, TENSORS)
    (directory / "model.safetensors.index.json").write_text(damaged, "utf-8")
    assert files_of(directory) == {"model.safetensors"}
    assert "it is ignored, because model.safetensors is there" in caplog.text


@pytest.mark.parametrize("removes", [False, True])
def test_a_file_and_an_index_of_different_tensors_are_an_error(
    directory: Path, removes: bool
) -> None:
    sharded_safetensors(directory, TENSORS)
    single_safetensors(directory, {"a": torch.ones(2)})
    if removes:
        remove_shards(directory, "model-0*")
    with pytest.raises(TensorError, match=r"list different tensors, such as b: remove the one"):
        files_of(directory)


@pytest.mark.parametrize("write", [sharded_safetensors, sharded_bin])
def test_a_whole_pickle_is_used_next_to_an_index_without_shards(
    directory: Path, write: object
) -> None:
    assert callable(write)
    write(directory, TENSORS)
    remove_shards(directory, "*-0*")
    single_bin(directory, TENSORS)
    assert files_of(directory) == {"pytorch_model.bin"}


def test_an_index_of_the_preferred_format_is_used_next_to_another_file(directory: Path) -> None:
    sharded_safetensors(directory, TENSORS)
    single_bin(directory, {"other": torch.ones(1)})
    assert all(name.endswith(".safetensors") for name in files_of(directory))


def test_a_missing_shard_is_an_error_and_no_other_file_is_used(directory: Path) -> None:
    sharded_safetensors(directory, TENSORS)
    single_bin(directory, TENSORS)
    next(directory.glob("model-00001*")).unlink()
    checkpoint = Checkpoint.open(directory)
    with pytest.raises(TensorError, match="is missing: the download may be incomplete"):
        list(checkpoint.tensors(checkpoint.tensor_names))


def test_an_index_may_name_the_single_file(directory: Path) -> None:
    single_safetensors(directory, TENSORS)
    index = {"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert files_of(directory) == {"model.safetensors"}


@pytest.mark.parametrize("has_config", [False, True])
def test_a_lora_adapter_is_reported_with_its_base(tmp_path: Path, has_config: bool) -> None:
    write_json(tmp_path / "adapter_config.json", {"base_model_name_or_path": "maker/base"})
    if has_config:
        write_json(tmp_path / "config.json", {})
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises((ConfigError, TensorError), match="is a LoRA adapter of maker/base: merge"):
        _ = checkpoint.tensor_names if has_config else checkpoint.config


def test_a_header_that_claims_very_much_is_not_read(directory: Path) -> None:
    path = directory / "model.safetensors"
    with path.open("wb") as file:
        file.write((2**40).to_bytes(8, "little"))
        file.truncate(2**40)  # sparse: it takes no space on the disk
    assert len(read_header(path)) == 100_000_000
    with pytest.raises(TensorError, match="damaged"):
        files_of(directory)
