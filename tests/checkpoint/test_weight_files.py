from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import write_json, write_llava
from small_checkpoint import Writer, read, some_tensors, write_checkpoint
from weight_files import (
    LAYOUTS,
    ReadSpy,
    read_all,
    sharded_bin,
    sharded_safetensors,
    single_bin,
    single_safetensors,
)

import vlcore
from vlcore import Checkpoint

# -- reading tensors


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_same_tensors(tmp_path: Path, write: Writer) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, write))
    expected = some_tensors()
    tensors = read(checkpoint)
    assert checkpoint.tensor_names == tuple(sorted(expected))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("write", LAYOUTS)
def test_floating_tensors_are_converted_and_others_are_not(tmp_path: Path, write: Writer) -> None:
    tensors = read(Checkpoint.open(write_checkpoint(tmp_path, write)), dtype=torch.float64)
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    assert dtypes.pop("b.counts") == torch.int64
    assert set(dtypes.values()) == {torch.float64}


def test_pickles_of_the_old_format_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    torch.save(some_tensors(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read(Checkpoint.open(tmp_path))["a.bias"], some_tensors()["a.bias"])


def test_only_requested_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, sharded_safetensors))
    spy = ReadSpy(monkeypatch)
    assert [name for name, _ in checkpoint.tensors(["a.bias", "a.bias"])] == ["a.bias"]
    assert spy.names == ["a.bias"]
    assert spy.files == [checkpoint.file_of("a.bias")]


def test_names_are_found_by_prefix(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    assert checkpoint.has_tensors("a.")
    assert not checkpoint.has_tensors("c.")


@pytest.mark.parametrize("write", [single_bin, sharded_bin])
def test_safetensors_are_preferred_to_pickles(tmp_path: Path, write: Writer) -> None:
    write_checkpoint(tmp_path, write)
    single_safetensors(tmp_path, {"other": torch.zeros(1)})
    assert Checkpoint.open(tmp_path).tensor_names == ("other",)


# -- one part of a large checkpoint


@pytest.mark.parametrize("sharded", [False, True])
def test_a_vision_model_reads_its_own_tensors_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    write_llava(tmp_path, vocab_size=6500)
    stored = read_all(tmp_path)
    if sharded:
        (tmp_path / "model.safetensors").unlink()
        sharded_safetensors(tmp_path, stored, num_shards=3)
    used = {
        name
        for name in stored
        if name.startswith(("model.mm_projector.", "model.vision_tower."))
        and "post_layernorm." not in name
        and ".layers.2." not in name  # the hidden state before the last layer is the one selected
    }
    is_text = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
    text_bytes = sum(tensor.nbytes for name, tensor in stored.items() if name.startswith(is_text))
    own_bytes = sum(stored[name].nbytes for name in used)
    assert text_bytes > 7 * own_bytes

    spy = ReadSpy(monkeypatch)
    vlcore.load_vision_model(tmp_path)
    assert sorted(spy.names) == sorted(used)
    assert spy.num_bytes == own_bytes
    assert not any(name.startswith(is_text) for name in spy.names)
