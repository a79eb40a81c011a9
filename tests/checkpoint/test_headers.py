from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import write_llava, write_yi
from qwen_checkpoints import write_pointing_qwen
from safetensors.torch import save_file

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.headers import HeaderCheckpoint
from vlcore.errors import CheckpointNotFoundError, TensorError
from vlcore.plugins.stages import ModelStages

META = torch.device("meta")


def write_weights(directory: Path, **tensors: torch.Tensor) -> Path:
    (directory / "config.json").write_text("{}")
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_tensors_have_shape_and_dtype_and_no_values(tmp_path: Path) -> None:
    write_weights(tmp_path, a=torch.ones(2, 3), b=torch.ones(4, dtype=torch.int32))
    checkpoint = HeaderCheckpoint.from_checkpoint(Checkpoint.open(tmp_path))
    found = dict(checkpoint.tensors(["a", "b"], dtype=torch.float16))
    assert {name: (t.device.type, t.dtype, tuple(t.shape)) for name, t in found.items()} == {
        "a": ("meta", torch.float16, (2, 3)),
        "b": ("meta", torch.int32, (4,)),
    }


def test_a_requested_tensor_is_counted_once(tmp_path: Path) -> None:
    write_weights(tmp_path, a=torch.ones(2, 3), b=torch.ones(4))
    checkpoint = HeaderCheckpoint.from_checkpoint(Checkpoint.open(tmp_path))
    for _ in range(2):
        list(checkpoint.tensors(["a"], dtype=torch.float16))
    (used,) = checkpoint.used.values()
    assert (used.num_stored_bytes, used.num_bytes) == (24, 12)
    assert used.file == tmp_path / "model.safetensors"


def test_no_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("vlcore.checkpoint.weights.TensorReader.__call__", read)
    write_weights(tmp_path, a=torch.ones(2))
    with pytest.raises(AssertionError, match="was read"):
        list(Checkpoint.open(tmp_path).tensors(["a"]))
    ((_, tensor),) = HeaderCheckpoint.from_checkpoint(Checkpoint.open(tmp_path)).tensors(["a"])
    assert tensor.is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("write", [write_llava, write_yi, write_pointing_qwen])
def test_the_count_is_what_a_load_takes(write: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    write(tmp_path / "model")
    real = Checkpoint.open(tmp_path / "model")
    checkpoint = HeaderCheckpoint.from_checkpoint(real)
    model = ModelStages(checkpoint).language_model().to_transformers(META, dtype)
    loaded = ModelStages(real).language_model().to_transformers("cpu", dtype)
    expected = sum(parameter.nbytes for parameter in loaded.parameters())
    assert sum(parameter.nbytes for parameter in model.parameters()) == expected
    assert sum(used.num_bytes for used in checkpoint.used.values()) == expected


def test_a_vision_encoder_in_another_directory_is_counted(tmp_path: Path) -> None:
    write_yi(tmp_path / "model")
    checkpoint = HeaderCheckpoint.from_checkpoint(Checkpoint.open(tmp_path / "model"))
    ModelStages(checkpoint).vision_model(META, torch.float32)
    files = {used.file.parent.name for used in checkpoint.used.values()}
    assert len(files) == 2
    assert "model" in files


def test_pickled_weights_are_described_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": torch.ones(5)}, tmp_path / "pytorch_model.bin")
    checkpoint = HeaderCheckpoint.from_checkpoint(Checkpoint.open(tmp_path))
    ((_, tensor),) = checkpoint.tensors(["a"])
    assert tensor.is_meta
    assert tensor.shape == (5,)


# -- errors


def test_a_tensor_that_is_missing(tmp_path: Path) -> None:
    checkpoint = HeaderCheckpoint.from_checkpoint(
        Checkpoint.open(write_weights(tmp_path, a=torch.ones(1)))
    )
    with pytest.raises(TensorError, match=r"lacks 1 tensor\(s\): b"):
        list(checkpoint.tensors(["b"]))


def test_a_tensor_that_only_the_index_knows(tmp_path: Path) -> None:
    write_weights(tmp_path, a=torch.ones(1))
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    index = {"weight_map": {"b": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = HeaderCheckpoint.from_checkpoint(Checkpoint.open(tmp_path))
    with pytest.raises(TensorError, match="lacks the tensor 'b', which the index assigns"):
        list(checkpoint.tensors(["b"]))


def test_a_file_that_is_missing_or_damaged(tmp_path: Path) -> None:
    index = {"weight_map": {"b": "absent.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TensorError, match=r"absent\.safetensors is missing"):
        list(HeaderCheckpoint.from_checkpoint(Checkpoint.open(tmp_path)).tensors(["b"]))
    (tmp_path / "absent.safetensors").write_bytes(b"nonsense")
    with pytest.raises(TensorError, match="damaged or truncated"):
        list(HeaderCheckpoint.from_checkpoint(Checkpoint.open(tmp_path)).tensors(["b"]))


def test_a_dtype_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weights(tmp_path, a=torch.ones(1))
    monkeypatch.setattr("vlcore.checkpoint.headers.DTYPES", {"F16": torch.float16})
    checkpoint = HeaderCheckpoint.from_checkpoint(Checkpoint.open(tmp_path))
    with pytest.raises(TensorError, match="has the dtype F32; known are F16"):
        list(checkpoint.tensors(["a"]))


# -- a Hub repository whose weights are not downloaded


class Hub:
    """A fake of the Hub API: it has headers, and records requests."""

    def __init__(self, headers: dict[str, dict[str, Any]]) -> None:
        self.headers = headers
        self.asked: list[tuple[str, str, str]] = []

    def parse_safetensors_file_metadata(self, repository: str, name: str, *, revision: str) -> Any:
        self.asked.append((repository, name, revision))
        return SimpleNamespace(tensors=self.headers[name])


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """The directory of a revision, which holds the metadata files."""
    directory = tmp_path / "c0ffee"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


def remote(directory: Path) -> Checkpoint:
    def fetch(names: Any) -> None:
        raise AssertionError(f"{names} must not be fetched")

    return Checkpoint(directory, name="maker/model", fetch=fetch)


def entry(*shape: int, dtype: str = "BF16") -> Any:
    return SimpleNamespace(dtype=dtype, shape=list(shape))


def test_headers_of_the_hub_are_read_without_a_download(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub({"model.safetensors": {"a": entry(2, 3), "b": entry(7)}})
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    checkpoint = HeaderCheckpoint.from_checkpoint(remote(snapshot))
    assert checkpoint.tensor_names == ("a", "b")
    ((_, tensor),) = checkpoint.tensors(["a"], dtype=torch.float32)
    assert (tensor.shape, tensor.dtype) == ((2, 3), torch.float32)
    (used,) = checkpoint.used.values()
    assert (used.num_stored_bytes, used.num_bytes) == (12, 24)
    assert hub.asked == [("maker/model", "model.safetensors", "c0ffee")]


def test_only_the_shards_that_are_used_are_requested(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    hub = Hub({"two.safetensors": {"b": entry(7)}})
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    list(HeaderCheckpoint.from_checkpoint(remote(snapshot)).tensors(["b"]))
    assert hub.asked == [("maker/model", "two.safetensors", "c0ffee")]


def test_a_vision_encoder_in_a_folder_of_the_repository(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snapshot / "vit").mkdir()
    hub = Hub({"vit/model.safetensors": {"a": entry(7)}})
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    checkpoint = HeaderCheckpoint.from_checkpoint(remote(snapshot))
    list(checkpoint.related("./vit").tensors(["a"]))
    assert hub.asked == [("maker/model", "vit/model.safetensors", "c0ffee")]
    assert list(checkpoint.used) == [("maker/model/vit", "a")]


def test_a_hub_without_the_header(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub({}))
    checkpoint = HeaderCheckpoint.from_checkpoint(remote(snapshot))
    with pytest.raises(CheckpointNotFoundError, match="cannot be read"):
        list(checkpoint.tensors(["a"]))


def test_a_downloaded_file_is_read_from_disk(snapshot: Path) -> None:
    write_weights(snapshot, a=torch.ones(2))
    assert HeaderCheckpoint.from_checkpoint(remote(snapshot)).tensor_names == ("a",)
