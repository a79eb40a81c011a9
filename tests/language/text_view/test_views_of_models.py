from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import write_json, write_llava
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_llama import CONFIG, SIZES, TEXT, logits, stored_tensors, write
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
)
from weight_files import FakeHub, read_all, sharded_safetensors, single_bin

import vlcore
from vlcore import Checkpoint, LanguageModel, TensorSource, renamed
from vlcore.errors import CheckpointError


def view_files(view: Path) -> dict[str, bool]:
    """Tell of each weight file of a view whether it is a link."""
    return {path.name: path.is_symlink() for path in sorted(view.glob("*.safetensors"))}


def read_index(view: Path) -> dict[str, str]:
    index = json.loads((view / "model.safetensors.index.json").read_text())
    weight_map: dict[str, str] = index["weight_map"]
    for name, filename in weight_map.items():
        with safe_open(view / filename, framework="pt") as file:
            assert name in file.keys()  # noqa: SIM118
    return weight_map


def load(view: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(view, dtype=torch.float32)
    model.train(False)
    return model


def test_a_view_of_unchanged_tensors_copies_none(
    tmp_path: Path, whole: LanguageModel, reference: PreTrainedModel
) -> None:
    view = whole.write_view(tmp_path / "views" / "text")
    assert view == tmp_path / "views" / "text"
    assert view_files(view) == {"linked-00001.safetensors": True}
    link = (view / "linked-00001.safetensors").resolve()
    assert link == (whole.checkpoint.directory / "model.safetensors").resolve()
    assert set(read_index(view)) == set(reference.state_dict())
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_links_each_shard_of_the_language_model_once(
    tmp_path: Path, reference: PreTrainedModel
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    tensors = stored_tensors(reference)
    vision = {"model.vision.weight": tensors.pop("model.vision.weight")}
    sharded_safetensors(directory, tensors, num_shards=3)
    save_file(vision, directory / "vision.safetensors")
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.vision.weight"] = "vision.safetensors"
    write_json(index, content)
    checkpoint = Checkpoint.open(directory)
    language = LanguageModel(checkpoint, CONFIG, renamed(checkpoint, TEXT))
    view = language.write_view(tmp_path / "view")
    assert list(view_files(view).values()) == [True, True, True]
    targets = {path.resolve().name for path in view.glob("*.safetensors")}
    assert targets == {f"model-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)}
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_copies_tensors_that_are_renamed_or_cut(
    tmp_path: Path, fused: LanguageModel, reference: PreTrainedModel
) -> None:
    view = fused.write_view(tmp_path / "view")
    assert view_files(view) == {"copied-00001.safetensors": False}
    copied = load_file(view / "copied-00001.safetensors")
    assert set(copied) == set(read_index(view)) == set(reference.state_dict())
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_copies_only_changed_tensors(
    tmp_path: Path, whole: LanguageModel, reference: PreTrainedModel
) -> None:
    tensors = stored_tensors(reference)
    tensors["head"] = tensors.pop("lm_head.weight")
    checkpoint = write(tmp_path / "other", tensors)
    sources = renamed(checkpoint, TEXT | {"head": "lm_head.weight"})
    view = LanguageModel(checkpoint, CONFIG, sources).write_view(tmp_path / "view")
    assert view_files(view) == {
        "copied-00001.safetensors": False,
        "linked-00001.safetensors": True,
    }
    assert set(load_file(view / "copied-00001.safetensors")) == {"lm_head.weight"}
    index = read_index(view)
    assert set(index) == set(reference.state_dict())
    assert [name for name in index if index[name].startswith("copied")] == ["lm_head.weight"]


def test_a_view_copies_a_tensor_that_is_cut_under_its_own_name(
    tmp_path: Path, reference: PreTrainedModel
) -> None:
    tensors = stored_tensors(reference)
    head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = torch.cat([head, torch.ones(8, head.shape[1])])
    checkpoint = write(tmp_path / "model", tensors)
    sources = renamed(checkpoint, TEXT)
    sources["lm_head.weight"] = TensorSource("lm_head.weight", slice(0, len(head)))
    view = LanguageModel(checkpoint, CONFIG, sources).write_view(tmp_path / "view")
    assert read_index(view)["lm_head.weight"].startswith("copied")
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_of_pickles_copies_them(
    tmp_path: Path, whole: LanguageModel, reference: PreTrainedModel
) -> None:
    directory = whole.checkpoint.directory
    single_bin(directory, read_all(directory))
    (directory / "model.safetensors").unlink()
    checkpoint = Checkpoint.open(directory)
    language = LanguageModel(checkpoint, CONFIG, renamed(checkpoint, TEXT))
    view = language.write_view(tmp_path / "view")
    assert view_files(view) == {"copied-00001.safetensors": False}
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_view_splits_copies_into_shards(
    tmp_path: Path,
    fused: LanguageModel,
    reference: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlcore.language.text_view.plan._SHARD_BYTES", 4000)
    view = fused.write_view(tmp_path / "view")
    assert len(view_files(view)) > 2
    names = [name for path in view.glob("*.safetensors") for name in load_file(path)]
    assert sorted(names) == sorted(reference.state_dict())
    assert torch.equal(logits(load(view)), logits(reference))


def test_a_views_config_is_that_of_the_standard_architecture(
    tmp_path: Path, whole: LanguageModel
) -> None:
    language = LanguageModel(whole.checkpoint, CONFIG | {"rope_theta": 7.0}, whole.tensors)
    config = json.loads((language.write_view(tmp_path / "view") / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 7.0
    assert {key: config[key] for key in SIZES} == SIZES


def test_a_view_links_the_tokenizers_files(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_llava(tmp_path / "model"))
    write_json(checkpoint.directory / "generation_config.json", {"eos_token_id": 2})
    write_json(checkpoint.directory / "preprocessor_config.json", {})
    language = vlcore.load_language_model(checkpoint)
    view = language.write_view(tmp_path / "view")
    linked = {path.name for path in view.iterdir() if path.is_symlink()}
    assert linked == {
        "tokenizer.model",
        "tokenizer_config.json",
        "generation_config.json",
        "linked-00001.safetensors",
    }
    ids = [Checkpoint(path).tokenizer()("an image")["input_ids"] for path in (view,)]
    assert ids == [language.tokenizer()("an image")["input_ids"]]


def test_a_view_needs_an_empty_directory(tmp_path: Path, whole: LanguageModel) -> None:
    taken = tmp_path / "view"
    taken.mkdir()
    (taken / "notes.md").write_text("mine")
    with pytest.raises(CheckpointError, match=r"needs an empty directory; .*view is not empty"):
        whole.write_view(taken)
    assert [path.name for path in taken.iterdir()] == ["notes.md"]


def test_a_view_does_not_replace_a_file(tmp_path: Path, whole: LanguageModel) -> None:
    (tmp_path / "view").write_text("mine")
    with pytest.raises(CheckpointError, match=r"needs a directory; .*view is a file"):
        whole.write_view(tmp_path / "view")


def test_a_view_works_with_relative_paths(
    tmp_path: Path,
    whole: LanguageModel,
    reference: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint.open("model")
    language = LanguageModel(checkpoint, CONFIG, renamed(checkpoint, TEXT))
    view = language.write_view("deep/view").resolve()
    monkeypatch.chdir("/")
    assert torch.equal(logits(load(view)), logits(reference))


def test_the_view_of_a_hub_checkpoint_links_existing_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/llava"] = write_llava(tmp_path / "repository")
    view = vlcore.load_language_model("maker/llava").write_view(tmp_path / "view")
    links = [path for path in view.iterdir() if path.is_symlink()]
    assert links
    assert all(path.exists() for path in links)
