from __future__ import annotations

from typing import Any

import pytest

from vlcore.testing.needed_features import needed_features


@pytest.mark.parametrize(
    ("config", "feature"),
    [
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "mrope"),
        ({"text_config": {"rope_parameters": {"mrope_section": [2, 3, 3]}}}, "mrope"),
        ({"text_config": {"rope_scaling": {"xdrope_section": [2, 3]}}}, "mrope"),
        ({"vision_config": {"deepstack_visual_indexes": [8, 16, 24]}}, "deepstack"),
        ({"model_type": "qwen3_vl"}, "deepstack"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 64}}, "attention_groups"),
        ({"model_type": "paligemma"}, "attention_groups"),
        ({"text_config": {"use_bidirectional_attention": "vision"}}, "attention_groups"),
        ({"text_config": {"cross_attention_layers": [3, 8]}}, "cross_attention"),
        ({"model_type": "mllama"}, "cross_attention"),
        ({"cross_layer_interval": 4}, "cross_attention"),
    ],
)
def test_a_feature_is_found(config: dict[str, Any], feature: str) -> None:
    assert set(needed_features(config)) == {feature}


def test_the_setting_is_named_with_its_file() -> None:
    stated = {"vision_config": {"deepstack_visual_indexes": [8]}}
    assert needed_features(stated) == {
        "deepstack": "vision_config.deepstack_visual_indexes in config.json"
    }
    left_out = needed_features({"model_type": "qwen3_vl"})
    assert left_out["deepstack"].endswith("in the defaults of transformers")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llava", "text_config": {"model_type": "llama"}},
        {"model_type": "internvl"},
        {"model_type": ["no", "name"], "text_config": None},
        {"text_config": {"use_bidirectional_attention": False, "cross_attention_layers": []}},
        {"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}},
        {"model_type": "qwen3_vl", "vision_config": {"deepstack_visual_indexes": []}},
    ],
)
def test_nothing_is_found_where_nothing_is_needed(config: dict[str, Any]) -> None:
    assert needed_features(config) == {}
