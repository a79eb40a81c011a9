"""Which checkpoints the plugin claims."""

from __future__ import annotations

from typing import Any

import pytest
from vl_plugin_idefics3 import vl_match

SMOLVLM: dict[str, Any] = {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "model_type": "smolvlm",
    "vision_config": {"model_type": "smolvlm_vision"},
    "text_config": {"model_type": "llama"},
}
IDEFICS3 = SMOLVLM | {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "model_type": "idefics3",
    "vision_config": {"model_type": "idefics3"},
}


@pytest.mark.parametrize("config", [SMOLVLM, IDEFICS3, IDEFICS3 | {"text_config": {}}])
def test_both_architectures_match(config: dict[str, Any]) -> None:
    assert vl_match(config) is True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "its architectures are ['LlamaForCausalLM']"),
        ({"architectures": None}, "its architectures are []"),
        ({"model_type": "idefics3"}, "its model_type is 'idefics3', not 'smolvlm'"),
        ({"model_type": None}, "its model_type is None"),
        ({"vision_config": None}, "its config.json has no vision_config"),
        ({"text_config": None}, "its config.json has no text_config"),
        (
            {"text_config": {"model_type": "mistral"}},
            "its language model is 'mistral', not 'llama'",
        ),
    ],
)
def test_others_are_refused_with_the_reason(change: dict[str, Any], reason: str) -> None:
    refused = vl_match(SMOLVLM | change)
    assert isinstance(refused, str)
    assert refused.startswith(reason)
