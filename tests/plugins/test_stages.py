from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import NUM_ROWS, write_json, write_llava
from distributions import Site, make_site, plugin_source
from PIL import Image

import vlcore
from vlcore import ChatTemplate, Checkpoint, LanguageModel, VisionModel
from vlcore.errors import (
    CheckpointError,
    ConfigError,
    NoPluginError,
    OptionError,
    PluginConflictError,
    PluginContractError,
    TensorError,
)
from vlcore.plugins.stages import ModelStages

RETURNS_PARTS = plugin_source(
    vision="""
from vlcore import VisionModel
class Tiny(VisionModel):
    hidden_size = 3
model = Tiny()
model.asked_for = (checkpoint, device, dtype)
return model""",
    template="""
from vlcore import ChatTemplate
template = ChatTemplate()
template.stop = (str(name),)
return template""",
    language="""
from vlcore import LanguageModel
return LanguageModel(checkpoint, {"model_type": "llama", "architectures": ["L"]}, {})""",
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path / "site", monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    write_json(directory / "config.json", {"architectures": ["MadeUpForTests"]})
    (directory / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return directory


# -- through a plugin


def test_each_stage_comes_from_its_hook(site: Site, directory: Path) -> None:
    site.install("vl-plugin-first", ["MadeUpForTests"], RETURNS_PARTS)
    vision: Any = vlcore.load_vision_model(directory, "cpu", "bfloat16")
    checkpoint, device, dtype = vision.asked_for
    assert checkpoint.directory == directory
    assert (device, dtype) == (torch.device("cpu"), torch.bfloat16)
    assert isinstance(vision, VisionModel)
    assert vlcore.load_chat_template(directory, "chosen").stop == ("chosen",)
    assert vlcore.load_chat_template(directory).stop == ("None",)
    assert vlcore.load_language_model(directory).architecture == "L"


def test_the_vision_model_is_float32_unless_asked(site: Site, directory: Path) -> None:
    site.install("vl-plugin-first", ["MadeUpForTests"], RETURNS_PARTS)
    vision: Any = vlcore.load_vision_model(directory)
    assert vision.asked_for[1:] == (torch.device("cpu"), torch.float32)


def test_device_map_is_refused_without_the_argument(site: Site, directory: Path) -> None:
    site.install("vl-plugin-first", ["MadeUpForTests"], RETURNS_PARTS)
    for spread in ({"device_map": "auto"}, {"max_memory": {"cpu": "1GiB"}}):
        with pytest.raises(OptionError, match=r"vl-plugin-first .* cannot distribute its"):
            vlcore.load_vision_model(directory, **spread)


def test_device_map_and_max_memory_reach_the_hook(site: Site, directory: Path) -> None:
    source = RETURNS_PARTS.replace(
        "vision_model(checkpoint, device, dtype)",
        "vision_model(checkpoint, dtype, device_map, max_memory)",
    ).replace("(checkpoint, device, dtype)", "(device_map, max_memory)")
    site.install("vl-plugin-first", ["MadeUpForTests"], source)
    for spread, asked_for in (
        ({"device_map": {"": 0}}, ({"": 0}, None)),
        ({"max_memory": {0: "1GiB"}}, ("auto", {0: "1GiB"})),
        ({}, (None, None)),
    ):
        vision: Any = vlcore.load_vision_model(directory, **spread)
        assert vision.asked_for == asked_for


def test_max_memory_is_refused_without_the_argument(site: Site, directory: Path) -> None:
    source = RETURNS_PARTS.replace(
        "vision_model(checkpoint, device, dtype)",
        "vision_model(checkpoint, device, dtype, device_map)",
    )
    site.install("vl-plugin-first", ["MadeUpForTests"], source)
    with pytest.raises(OptionError, match=r"vl-plugin-first 1\.0 does not accept max_memory"):
        vlcore.load_vision_model(directory, max_memory={"cpu": "1GiB"})
    assert vlcore.load_vision_model(directory, device_map="auto").hidden_size == 3


@pytest.mark.parametrize("taken", ["checkpoint", ""])
@pytest.mark.parametrize("name", ["chosen", ""])
def test_a_template_name_is_refused_without_the_argument(
    site: Site, directory: Path, taken: str, name: str
) -> None:
    source = RETURNS_PARTS.replace(
        "vl_chat_template(checkpoint, name)", f"vl_chat_template({taken})"
    ).replace("str(name)", "'only'")
    site.install("vl-plugin-first", ["MadeUpForTests"], source)
    with pytest.raises(OptionError, match=r"vl-plugin-first 1\.0 has one chat template .*'.*'"):
        vlcore.load_chat_template(directory, name)
    assert vlcore.load_chat_template(directory).stop == ("only",)


def test_the_fingerprint_is_the_checkpoints_unless_the_model_has_its_own(
    site: Site, directory: Path
) -> None:
    site.install("vl-plugin-first", ["MadeUpForTests"], RETURNS_PARTS)
    assert vlcore.load_vision_model(directory).fingerprint == Checkpoint(directory).fingerprint
    own = RETURNS_PARTS.replace("hidden_size = 3", "hidden_size = 3; fingerprint = 'mine'")
    site.install("vl-plugin-second", ["MadeUpForTests"], own)
    vision = vlcore.load_vision_model(directory, plugin="vl-plugin-second")
    assert vision.fingerprint == "mine"


def test_an_opened_checkpoint_is_accepted(site: Site, directory: Path) -> None:
    site.install("vl-plugin-first", ["MadeUpForTests"], RETURNS_PARTS)
    checkpoint = Checkpoint.open(directory)
    assert ModelStages(checkpoint).checkpoint is checkpoint
    assert vlcore.load_language_model(checkpoint).checkpoint is checkpoint


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("vision_model", "vl_vision_model of plugin vl-plugin-odd 1.0 must return a VisionModel"),
        ("chat_template", "vl_chat_template of plugin vl-plugin-odd 1.0 must return a ChatTempl"),
        ("language_model", "vl_language_model of plugin vl-plugin-odd 1.0 must return a Language"),
    ],
)
@pytest.mark.parametrize("value", ["None", "'text'"])
def test_a_hook_with_a_wrong_result_is_reported(
    site: Site, directory: Path, stage: str, message: str, value: str
) -> None:
    body = f"return {value}"
    source = plugin_source(vision=body, template=body, language=body)
    site.install("vl-plugin-odd", ["MadeUpForTests"], source)
    with pytest.raises(PluginContractError, match=message) as caught:
        getattr(ModelStages(directory), stage)()
    assert f"it returned {'NoneType' if value == 'None' else 'str'}" in str(caught.value)


def test_a_vision_model_without_a_hidden_size_is_reported(site: Site, directory: Path) -> None:
    source = RETURNS_PARTS.replace("hidden_size = 3", "pass")
    site.install("vl-plugin-odd", ["MadeUpForTests"], source)
    with pytest.raises(PluginContractError, match="Tiny of plugin vl-plugin-odd must set hidden_s"):
        vlcore.load_vision_model(directory)


@pytest.mark.parametrize(
    "load", [vlcore.load_vision_model, vlcore.load_chat_template, vlcore.load_language_model]
)
def test_the_choice_of_a_plugin_reaches_every_stage(site: Site, directory: Path, load: Any) -> None:
    with pytest.raises(NoPluginError):
        load(directory)
    site.install("vl-plugin-first", ["MadeUpForTests"], RETURNS_PARTS)
    site.install("vl-plugin-second", ["MadeUpForTests"], RETURNS_PARTS)
    with pytest.raises(PluginConflictError):
        load(directory)
    assert load(directory, plugin="vl-plugin-second") is not None


# -- stages are independent


def test_the_vision_model_needs_no_tokenizer_and_no_text(tmp_path: Path) -> None:
    write_llava(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    vision = vlcore.load_vision_model(tmp_path)
    inputs = vision.preprocess(Image.new("RGB", (9, 7)))
    assert [len(image.rows) for image in vision.forward([inputs])] == [NUM_ROWS]  # type: ignore[union-attr]


def test_the_chat_template_needs_no_weights(tmp_path: Path) -> None:
    write_llava(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    template = vlcore.load_chat_template(tmp_path)
    assert isinstance(template, ChatTemplate)
    assert template.stop == ("</s>",)


def test_the_language_model_needs_no_vision_encoder_and_no_tokenizer(tmp_path: Path) -> None:
    write_llava(tmp_path)
    for path in [*tmp_path.glob("tokenizer*"), *tmp_path.glob("clip/*")]:
        path.unlink()
    language = vlcore.load_language_model(tmp_path)
    assert isinstance(language, LanguageModel)
    assert language.to_transformers("cpu", torch.float32).dtype == torch.float32


def test_missing_files_of_a_stage_are_reported(tmp_path: Path) -> None:
    write_llava(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        path.unlink()
    language = vlcore.load_language_model(tmp_path)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        language.tokenizer()
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TensorError, match="holds no weights"):
        vlcore.load_vision_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        vlcore.load_vision_model(tmp_path)


def test_a_template_that_omits_what_the_user_writes_is_an_error(
    site: Site, directory: Path
) -> None:
    template = """
from vlcore import JinjaTemplate
return JinjaTemplate("{% for message in messages %}{{ message.text }}{% endfor %}")"""
    site.install("vl-plugin-silent", ["MadeUpForTests"], plugin_source(template=template))
    with pytest.raises(ConfigError, match="omits the texts of the user"):
        vlcore.load_chat_template(directory)
