"""Matching by the checkpoint's own files of a vision encoder that config.json names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import pytest
import torch
from checkpoints import write_llava, write_yi
from PIL import Image
from weight_files import FakeHub

import vlcore
from vlcore import Checkpoint, CheckpointNotFoundError, ConfigError, NoPluginError
from vlcore.plugins import find_plugin

WRITERS: dict[str, Callable[[Path], Path]] = {
    "vl-plugin-llava": write_llava,
    "vl-plugin-yi": write_yi,
}
SPELLINGS = [
    "towers/vit-l",
    "./towers/vit-l",
    "towers/vit-l/",
    "towers//vit-l",
    "towers/other/../vit-l",
    r"towers\vit-l",
    ".\\towers\\vit-l\\",
]


@pytest.fixture(params=list(WRITERS))
def plugin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def checkpoint(tmp_path: Path, plugin: str) -> Path:
    """Write a checkpoint of the plugin whose vision encoder is in towers/vit-l."""
    directory = WRITERS[plugin](tmp_path / "model")
    (tower,) = (path.parent for path in directory.rglob("*/config.json"))
    (directory / "towers").mkdir()
    tower.rename(directory / "towers" / "vit-l")
    name_tower(directory, "towers/vit-l")
    return directory


def name_tower(checkpoint: Path, tower: str) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mm_vision_tower": tower}))


def describe_tower(checkpoint: Path, tower: str, config: str) -> None:
    """Name a vision encoder, and write the config.json of its folder."""
    name_tower(checkpoint, tower)
    folder = checkpoint.joinpath(*PureWindowsPath(tower).parts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(config.encode("latin-1"))


def plugin_of(directory: Path, plugin: str | None = None) -> str:
    opened = Checkpoint.open(directory)
    return find_plugin(opened.config, files=opened.files, plugin=plugin).info.distribution


def reason_of(directory: Path, plugin: str) -> str:
    with pytest.raises(NoPluginError) as caught:
        plugin_of(directory, plugin)
    return str(caught.value)


# -- the match


@pytest.mark.parametrize("model_type", ["clip", "clip_vision_model"])
@pytest.mark.parametrize("tower", SPELLINGS)
def test_the_configuration_of_a_folder_is_the_evidence(
    checkpoint: Path, plugin: str, tower: str, model_type: str
) -> None:
    describe_tower(checkpoint, tower, json.dumps({"model_type": model_type}))
    assert plugin_of(checkpoint) == plugin


@pytest.mark.parametrize(
    "tower", ["InternViT-6B", "./internvit", "OpenGVLab/InternViT-6B", "a/b/c/d"]
)
def test_the_configuration_counts_more_than_the_name(
    checkpoint: Path, plugin: str, tower: str
) -> None:
    describe_tower(checkpoint, tower, '{"model_type": "clip_vision_model"}')
    assert plugin_of(checkpoint) == plugin


@pytest.mark.parametrize("tower", ["clip", "./clip-vit", "towers/clip/", r"towers\clip"])
@pytest.mark.parametrize("model_type", ["siglip_vision_model", "chinese_clip", ["clip"]])
def test_a_folder_with_another_tower_is_refused_with_its_model_type(
    checkpoint: Path, plugin: str, tower: str, model_type: object
) -> None:
    describe_tower(checkpoint, tower, json.dumps({"model_type": model_type}))
    assert (
        f"its vision encoder {tower!r} is a {model_type!r} by the config.json of that folder; "
        "known: clip, clip_vision_model"
    ) in reason_of(checkpoint, plugin)


@pytest.mark.parametrize("config", ["{}", '{"model_type": null}'])
def test_a_configuration_without_a_model_type_leaves_the_name_to_decide(
    checkpoint: Path, plugin: str, config: str
) -> None:
    describe_tower(checkpoint, "towers/vit-l", config)
    reason = reason_of(checkpoint, plugin)
    assert "its vision encoder 'towers/vit-l' is not known to be a CLIP model" in reason
    assert "no folder of that name whose config.json has a model_type" in reason
    for tower in ("./towers/vit-l", "maker/clip-vit-l"):
        name_tower(checkpoint, tower)
        assert plugin_of(checkpoint) == plugin


@pytest.mark.parametrize("tower", ["maker/vit-l", "towers/vit-b", r"towers\vit-b"])
def test_a_name_that_is_no_folder_must_say_that_it_is_a_clip(
    checkpoint: Path, plugin: str, tower: str
) -> None:
    name_tower(checkpoint, tower)
    assert f"{tower!r} is not known to be a CLIP model" in reason_of(checkpoint, plugin)
    name_tower(checkpoint, f"{tower}-clip")
    assert plugin_of(checkpoint) == plugin


def test_what_lies_outside_the_checkpoint_is_no_evidence(checkpoint: Path, plugin: str) -> None:
    (checkpoint / "towers" / "vit-l").rename(checkpoint.parent / "vit-l")
    name_tower(checkpoint, "towers/../../vit-l")
    assert "is not known to be a CLIP model" in reason_of(checkpoint, plugin)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_configuration_is_the_reason(checkpoint: Path, plugin: str, text: str) -> None:
    describe_tower(checkpoint, "towers/vit-l", text)
    damaged = checkpoint / "towers" / "vit-l" / "config.json"
    assert f"does not serve it: {damaged} " in reason_of(checkpoint, plugin)


# -- loading


def rows_of(model: str | Path) -> torch.Tensor:
    vision_model = vlcore.load_vision_model(model)
    image = Image.new("RGB", (40, 30), "red")
    (encoded,) = vision_model.forward([vision_model.preprocess(image)])
    assert isinstance(encoded, vlcore.ImageRows)
    return encoded.rows


@pytest.mark.parametrize("tower", SPELLINGS)
def test_every_spelling_of_a_folder_is_loaded(checkpoint: Path, tower: str) -> None:
    expected = rows_of(checkpoint)
    name_tower(checkpoint, tower)
    assert torch.equal(rows_of(checkpoint), expected)


@pytest.mark.parametrize("tower", SPELLINGS)
def test_a_folder_of_a_hub_repository_is_matched_before_any_weight_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path, plugin: str, tower: str
) -> None:
    expected = rows_of(checkpoint)
    name_tower(checkpoint, tower)
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/model"] = checkpoint
    opened = Checkpoint.open("maker/model")
    found = find_plugin(opened.config, files=opened.files)
    assert found.info.distribution == plugin
    assert not any(name.endswith((".safetensors", ".bin")) for name in hub.fetched("maker/model"))
    assert torch.equal(rows_of("maker/model"), expected)


def test_a_tower_on_the_hub_is_loaded_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    expected = rows_of(checkpoint)
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/clip-vit-l"] = checkpoint / "towers" / "vit-l"
    name_tower(checkpoint, "maker/clip-vit-l")
    assert torch.equal(rows_of(checkpoint), expected)


def test_the_whole_path_of_a_tower_is_loaded(checkpoint: Path) -> None:
    expected = rows_of(checkpoint)
    elsewhere = (checkpoint / "towers" / "vit-l").rename(checkpoint.parent / "vit-l")
    name_tower(checkpoint, str(elsewhere))
    assert torch.equal(rows_of(checkpoint), expected)


def test_a_whole_path_to_another_tower_is_refused_when_it_is_loaded(checkpoint: Path) -> None:
    elsewhere = checkpoint.parent / "vit-l"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    name_tower(checkpoint, str(elsewhere))
    with pytest.raises(ConfigError, match=r"vit-l must describe a CLIP .* 'siglip_vision_model'"):
        vlcore.load_vision_model(checkpoint)


def test_a_whole_path_to_nothing_is_an_error(checkpoint: Path) -> None:
    name_tower(checkpoint, "/nowhere/vit-l")
    with pytest.raises(CheckpointNotFoundError, match="there is no directory '/nowhere/vit-l'"):
        vlcore.load_vision_model(checkpoint)


def test_a_path_that_leads_out_of_the_checkpoint_is_refused(checkpoint: Path) -> None:
    (checkpoint / "towers" / "vit-l").rename(checkpoint.parent / "vit-l")
    name_tower(checkpoint, "../vit-l")
    with pytest.raises(CheckpointNotFoundError, match=r"'\.\./vit-l', .* leads out of the checkpo"):
        vlcore.load_vision_model(checkpoint)
