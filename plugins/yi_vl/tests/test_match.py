from __future__ import annotations

import json
from typing import Any

import pytest
from golden_cases import GOLDEN
from vl_plugin_yi import vl_match

from vlcore import CheckpointFiles, NoPluginError
from vlcore.plugins import find_plugin

CONFIG: dict[str, Any] = json.loads((GOLDEN / "yi_vl" / "config.json").read_text())


def match(config: dict[str, Any], files: CheckpointFiles | None = None) -> object:
    """Ask about a configuration alone, or about one in a checkpoint."""
    return vl_match(config, CheckpointFiles() if files is None else files)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mm_projector_type": "mlp1x_gelu_Norm"},
        {"mm_vision_tower": "vit"},
        {"mm_vision_tower": "/models/vit"},
        {"mm_vision_tower": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"},
        {"_name_or_path": "llava-v1.5-7b"},
    ],
    ids=str,
)
def test_a_projector_with_norms_over_a_clip_tower_matches(change: dict[str, Any]) -> None:
    assert match(CONFIG | change) is True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mm_projector_type": "mlp2x_gelu"}, "its projector 'mlp2x_gelu' has no norms"),
        ({"mm_projector_type": "linear"}, "its projector 'linear' has no norms"),
        ({"mm_projector_type": "mlp0x_gelu_Norm"}, "its projector 'mlp0x_gelu_Norm' has no"),
        ({"mm_projector_type": ["mlp2x_gelu_Norm"]}, "its projector ['mlp2x_gelu_Norm'] has no"),
        ({"mm_projector_type": None}, "its projector None has no norms"),
        ({"mm_vision_tower": None}, "config.json names no vision encoder in mm_vision_tower"),
        ({"mm_vision_tower": ""}, "config.json names no vision encoder in mm_vision_tower"),
        ({"mm_vision_tower": "OpenGVLab/InternViT-6B"}, "is not known to be a CLIP model"),
    ],
    ids=str,
)
def test_another_checkpoint_is_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    config = CONFIG | change
    answer = match(config)
    assert isinstance(answer, str)
    assert reason in answer
    with pytest.raises(NoPluginError) as caught:
        find_plugin(config, plugin="vl-plugin-yi")
    assert reason in str(caught.value)


@pytest.mark.parametrize("key", ["mm_projector_type", "mm_vision_tower"])
def test_a_config_without_a_key_that_tells_is_refused(key: str) -> None:
    assert isinstance(match({name: CONFIG[name] for name in CONFIG if name != key}), str)
