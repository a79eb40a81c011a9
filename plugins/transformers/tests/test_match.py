"""Which checkpoints the plugin serves, and its reasons against the others."""

from __future__ import annotations

import json
import re
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pytest
import vl_plugin_transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers_families.checkpoints import write_checkpoint
from vl_plugin_transformers import processor
from vl_plugin_transformers.families import FAMILIES

import vlcore
from vlcore.hookspecs import ENTRY_POINT_GROUP, GENERIC_GROUP
from vlcore.plugins import find_plugin

PLUGIN = "vl-plugin-transformers"
NAMES = {
    name for family in FAMILIES.values() for name in (family.architecture, family.alias) if name
}


def config_of(model_type: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [FAMILIES[model_type].architecture]} | more


def test_every_family_has_its_class_and_its_entry_point() -> None:
    entry_points = metadata.distribution(PLUGIN).entry_points
    assert set(entry_points.select(group=GENERIC_GROUP).names) == NAMES
    assert not entry_points.select(group=ENTRY_POINT_GROUP)
    registered = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    assert {name: family.architecture for name, family in FAMILIES.items()} == {
        name: registered[name] for name in FAMILIES
    }


def test_the_readme_lists_every_family() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    section = readme.partition("## Families")[2].partition("Where a package is missing")[0]
    listed = re.findall(r"`([a-z0-9_]+)`", section.partition("|---|")[2])
    assert sorted(listed) == sorted(FAMILIES)
    for name, family in FAMILIES.items():
        row = next(line for line in section.splitlines() if f"`{name}`" in line)
        assert all(package in row for package in family.packages), name


def test_the_package_is_named_where_it_is_not_installed() -> None:
    text = resources.files("vlcore.plugins").joinpath("known_plugins.json").read_text("utf-8")
    (entry,) = (entry for entry in json.loads(text) if entry["package"] == PLUGIN)
    assert entry["architectures"] == sorted(NAMES)


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_family_matches(model_type: str) -> None:
    assert vl_plugin_transformers.vl_match(config_of(model_type)) is True


def test_a_released_name_of_an_architecture_matches() -> None:
    config = {"model_type": "kimi_k25", "architectures": ["KimiK25ForConditionalGeneration"]}
    assert vl_plugin_transformers.vl_match(config) is True


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "its model_type is None"),
        ({"model_type": 7}, "its model_type is 7"),
        ({"model_type": ["qwen2_vl"]}, "its model_type is"),
        ({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}, "LlavaForCond"),
        (config_of("qwen2_vl") | {"architectures": "Qwen2VLForConditionalGeneration"}, "its arch"),
        (config_of("qwen2_vl") | {"model_type": "qwen2_5_vl"}, "Qwen2_5_VLForConditional"),
    ],
    ids=str,
)
def test_other_configurations_have_a_reason(config: dict[str, Any], reason: str) -> None:
    assert reason in str(vl_plugin_transformers.vl_match(config))


def test_a_family_with_a_plugin_of_its_own_keeps_it() -> None:
    own = {"vision_config": {"model_type": "clip_vision_model"}, "text_config": {}}
    clip = config_of("llava", **own)
    assert find_plugin(clip).info.distribution == "vl-plugin-llava"
    assert find_plugin(clip, plugin=PLUGIN).info.distribution == PLUGIN
    siglip = config_of("llava", vision_config={"model_type": "siglip_vision_model"})
    assert find_plugin(siglip).info.distribution == PLUGIN


@pytest.mark.parametrize(
    ("name", "package"), [("kimi_k25", "torchvision"), ("smolvlm", "num2words")]
)
@pytest.mark.parametrize("load", [vlcore.load_vision_model, vlcore.load_chat_template])
def test_a_missing_package_is_named(
    name: str, package: str, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of(name)))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.setattr(processor, "is_installed", lambda wanted: wanted != package)
    with pytest.raises(vlcore.PluginError, match=f"{name} model.*pip install {package}"):
        load(tmp_path, plugin=PLUGIN)


def test_remote_code_is_ignored(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "internvl", "internvl").directory
    config = json.loads((checkpoint / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (checkpoint / "config.json").write_text(json.dumps(config | {"auto_map": code}))
    (checkpoint / "evil.py").write_text("raise SystemExit('remote code ran')")
    language_model = vlcore.load_language_model(checkpoint, plugin=PLUGIN)
    assert language_model.architecture == "Qwen2ForCausalLM"
    assert vlcore.load_vision_model(checkpoint, plugin=PLUGIN).hidden_size == 64
