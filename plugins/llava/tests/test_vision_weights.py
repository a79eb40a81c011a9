from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_json, write_llava
from golden_cases import load_case
from llava_vision import (
    TOWER,
    encode,
    load,
    moved_tower,
    random_image,
    rewrite,
    set_json,
)
from safetensors.torch import load_file
from torch import Tensor
from weight_files import LAYOUTS, FakeHub, read_all, single_bin, single_safetensors

from vlcore import (
    CheckpointNotFoundError,
)


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_storage_gives_the_same_rows(tmp_path: Path, write: Any) -> None:
    write_llava(tmp_path)
    (expected,) = encode(load(tmp_path), random_image(40, 30))
    stored = read_all(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path, stored)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_an_encoder_next_to_the_checkpoint(tmp_path: Path, write: Any, prefix: str) -> None:
    write_llava(tmp_path)
    (expected,) = encode(load(tmp_path), random_image(40, 30))
    tower = {prefix + name: tensor for name, tensor in moved_tower(tmp_path).items()}
    others = {
        "text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2),
        "logit_scale": torch.zeros(()),
        f"{prefix}embeddings.position_ids": torch.arange(5)[None],
    }
    write(tmp_path / "clip", tower | others)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


def test_the_fingerprint_changes_with_the_encoder_next_to_it(tmp_path: Path) -> None:
    tower = moved_tower(write_llava(tmp_path))
    single_safetensors(tmp_path / "clip", tower)
    before = load(tmp_path).fingerprint
    assert load(tmp_path).fingerprint == before
    single_safetensors(tmp_path / "clip", tower | {"embeddings.position_ids": torch.arange(9)})
    assert load(tmp_path).fingerprint != before


def test_an_encoder_in_the_checkpoint_takes_precedence(tmp_path: Path) -> None:
    write_llava(tmp_path)
    (expected,) = encode(load(tmp_path), random_image(40, 30))
    stored = read_all(tmp_path)
    tower = {name.removeprefix(TOWER): stored[name] * 0 for name in stored if TOWER in name}
    single_safetensors(tmp_path / "clip", tower)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


def test_a_tower_under_the_shorter_name(tmp_path: Path) -> None:
    write_llava(tmp_path)
    (expected,) = encode(load(tmp_path), random_image(40, 30))

    def shorten(tensors: dict[str, Tensor]) -> None:
        for name in [*tensors]:
            tensors[name.replace(".vision_model.", ".")] = tensors.pop(name)

    rewrite(tmp_path, shorten)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("inside", [False, True])
def test_a_tower_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    directory = write_llava(tmp_path / "model")
    (expected,) = encode(load(directory), random_image(40, 30))
    set_json(directory / "config.json", mm_vision_tower="openai/clip-tiny")
    repository = tmp_path / "repository"
    shutil.move(directory / "clip", repository)
    (repository / "model.py").write_text("raise RuntimeError")
    if not inside:
        tower = moved_tower(directory)
        single_bin(repository, {f"vision_model.{name}": tower[name] for name in tower})
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["openai/clip-tiny"] = repository
    (rows,) = encode(load(directory), random_image(40, 30))
    assert torch.equal(rows, expected)
    files = {"config.json", "preprocessor_config.json"} | (
        set() if inside else {"pytorch_model.bin"}
    )
    assert hub.fetched("openai/clip-tiny") == files


def test_a_tower_on_a_hub_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llava(tmp_path, mm_vision_tower="openai/clip-tiny")
    FakeHub(tmp_path / "cache", monkeypatch)
    with pytest.raises(CheckpointNotFoundError, match="refers to 'openai/clip-tiny'"):
        load(tmp_path)


@pytest.mark.parametrize("newer", [False, True])
def test_hf_key_names_old_and_new(tmp_path: Path, newer: bool) -> None:
    case = load_case("llava16_hf")
    stored = load_file(case.directory / "model.safetensors")
    renames = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.vision_model.": "model.vision_tower." + ("" if newer else "vision_model."),
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
    }
    for path in case.directory.glob("*.json"):
        shutil.copy(path, tmp_path)
    renamed = {}
    for name, tensor in stored.items():
        old = next(prefix for prefix in renames if name.startswith(prefix))
        renamed[renames[old] + name.removeprefix(old)] = tensor
    single_safetensors(tmp_path, renamed)
    (rows,) = encode(load(tmp_path), case.images()[0])
    np.testing.assert_allclose(rows.numpy(), case.expected["features_0"], **case.tolerance)


def test_the_processors_newer_file_is_read(tmp_path: Path) -> None:
    case = load_case("llava15_hf")
    shutil.copytree(case.directory, tmp_path, dirs_exist_ok=True)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    write_json(tmp_path / "processor_config.json", {"image_processor": processor})
    (rows,) = encode(load(tmp_path), case.images()[0])
    np.testing.assert_allclose(rows.numpy(), case.expected["features_0"], **case.tolerance)
