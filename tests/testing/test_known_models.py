from __future__ import annotations

import json

import pytest

from vlcore import OptionError
from vlcore.plugins.registry import find_plugin
from vlcore.testing.known_models import KnownModel, known_models_of, read_known_models

KNOWN_MODELS = read_known_models()


def test_the_families_that_are_easily_mistaken_are_there() -> None:
    names = " ".join(known_model.name for known_model in KNOWN_MODELS)
    for word in ("llava-v1.5", "llava-v1.6", "-hf", "Yi-VL", "Qwen-VL", "text only"):
        assert word in names


def test_names_are_kept_apart() -> None:
    assert len({known_model.name for known_model in KNOWN_MODELS}) == len(KNOWN_MODELS)


@pytest.mark.parametrize(
    "known_model", [one for one in KNOWN_MODELS if one.package], ids=lambda one: one.name
)
def test_discovery_finds_the_plugin_that_is_named(known_model: KnownModel) -> None:
    assert find_plugin(known_model.config).info.distribution == known_model.package


def test_a_plugins_own_are_left_out_whatever_its_spelling() -> None:
    others = {known_model.name for known_model in known_models_of("VL_Plugin_Yi")}
    assert {known_model.name for known_model in KNOWN_MODELS} - others == {"Yi-VL-6B"}


def test_further_ones_can_be_named() -> None:
    others = {known_model.name for known_model in known_models_of("vl-plugin-some", ["Yi-VL-6B"])}
    assert "Yi-VL-6B" not in others
    with pytest.raises(OptionError, match="serves names Yi-VL; the kit knows"):
        known_models_of("vl-plugin-some", ["Yi-VL"])


def test_configurations_are_plain_json_with_architectures() -> None:
    for known_model in KNOWN_MODELS:
        assert known_model.config["architectures"]
        assert json.loads(json.dumps(known_model.config)) == known_model.config
