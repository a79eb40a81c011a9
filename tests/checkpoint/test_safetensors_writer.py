from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlcore.checkpoint.safetensors_writer import SafetensorsWriter
from vlcore.checkpoint.weights import DTYPES, TensorInfo, open_weights, read_header
from vlcore.errors import TensorError

TENSORS = {
    "bytes": torch.arange(5, dtype=torch.uint8),
    "matrix": torch.randn(3, 4),
    "halves": torch.randn(7).to(torch.bfloat16),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "none": torch.zeros(0, 3),
    "packed": torch.arange(6, dtype=torch.int32).reshape(2, 3),
}


def infos(tensors: dict[str, Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(t.dtype, tuple(t.shape)) for name, t in tensors.items()}


def write(path: Path, tensors: dict[str, Tensor]) -> SafetensorsWriter:
    file = SafetensorsWriter(infos(tensors))
    with file.writing(path) as put:
        for name in reversed(tensors):
            put(name, tensors[name])
    return file


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    file = write(path, TENSORS)
    assert path.stat().st_size == file.num_bytes
    assert read_header(path) == file.header
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_is_written_as_the_library_does(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(3, 2).to(dtype), "b": torch.zeros(4).to(dtype)}
    write(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    ours, theirs = (tmp_path / name for name in ("ours", "theirs"))
    assert json.loads(read_header(ours)) == json.loads(read_header(theirs))
    assert ours.read_bytes()[-64:] == theirs.read_bytes()[-64:]


def test_tensors_start_at_multiples_of_their_item_size(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors", TENSORS)
    header = json.loads(file.header)
    assert len(file.header) % 8 == 0
    for name, tensor in TENSORS.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0


def test_parts_that_share_memory_are_written_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    parts = {"upper": whole[:1], "lower": whole[1:], "turned": whole.T}
    write(tmp_path / "model.safetensors", parts)
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(loaded[name], part) for name, part in parts.items())


@pytest.mark.parametrize("tensor", [torch.zeros(2, 4), torch.zeros(3, 4).half()], ids=str)
def test_a_tensor_of_another_shape_or_dtype_is_an_error(tmp_path: Path, tensor: Tensor) -> None:
    path = tmp_path / "model.safetensors"
    file = SafetensorsWriter({"a": TensorInfo(torch.float32, (3, 4))})
    with pytest.raises(TensorError, match=r"'a' in .* must be"), file.writing(path) as put:
        put("a", tensor)


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    file = SafetensorsWriter(infos(TENSORS))
    path = tmp_path / "model.safetensors"
    with (
        pytest.raises(TensorError, match="closed without bytes, halves"),
        file.writing(path) as put,
    ):
        put("matrix", TENSORS["matrix"])


def test_an_unsupported_dtype_is_an_error() -> None:
    with pytest.raises(TensorError, match=r"'a' is torch\.complex64, which cannot be rewritten"):
        SafetensorsWriter({"a": TensorInfo(torch.complex64, (1,))})


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_tensors_are_described_before_they_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save(dict(TENSORS), path)
    with open_weights(path) as read:
        assert {name: read.describe(name) for name in read.names} == infos(TENSORS)
        assert read.describe("matrix").num_bytes == 48
        with pytest.raises(TensorError, match="'absent'"):
            read.describe("absent")


def test_an_unknown_dtype_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, dtype=torch.complex64)}, path)
    with open_weights(path) as reader, pytest.raises(TensorError, match=r"'a' of .*'C64' is not"):
        reader.describe("a")
