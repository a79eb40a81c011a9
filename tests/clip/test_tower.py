from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlcore.clip.tower import ClipConfig, ClipTower
from vlcore.errors import ConfigError

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}


@pytest.mark.parametrize(
    "change", [{}, {"hidden_act": "gelu"}, {"layer_norm_eps": 0.1}, {"num_attention_heads": 1}]
)
@pytest.mark.parametrize("num_layers", [0, 2, 3])
def test_hidden_states_are_those_of_transformers(change: dict[str, Any], num_layers: int) -> None:
    torch.manual_seed(0)
    sizes = SIZES | change
    reference = CLIPVisionModel(CLIPVisionConfig(**sizes)).train(False)
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tower = ClipTower(ClipConfig(**sizes), num_layers).eval()
    state = {
        name.removeprefix("vision_model."): tensor
        for name, tensor in reference.state_dict().items()
    }
    tower.load_state_dict({name: state[name] for name in tower.state_dict()})
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        expected = reference(pixels, output_hidden_states=True).hidden_states[num_layers]
        result = tower(pixels)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_defaults_are_those_of_transformers() -> None:
    defaults = CLIPVisionConfig()
    ours = ClipConfig.from_json({}, "config.json")
    assert {key: getattr(defaults, key) for key in vars(ours)} == vars(ours)


@pytest.mark.parametrize(
    "config",
    [
        SIZES,
        {"model_type": "clip_vision_model", **SIZES},
        {"model_type": "clip", "vision_config": SIZES, "text_config": {"hidden_size": 9}},
        {"model_type": "clip", "vision_config": None, "vision_config_dict": SIZES},
    ],
)
def test_an_encoder_is_read_from_each_kind_of_configuration(config: dict[str, Any]) -> None:
    assert ClipConfig.from_json(config, "config.json") == ClipConfig(**SIZES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "siglip_vision_model"},
            "must describe a CLIP vision encoder, not a 'siglip",
        ),
        ({"hidden_act": "relu"}, "has hidden_act 'relu'; known: quick_gelu, gelu"),
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ({"hidden_size": "wide"}, "hidden_size must be a positive integer; it is 'wide'"),
        ({"patch_size": 0}, "patch_size must be a positive integer; it is 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be a positive integer; it is -1"),
        ({"image_size": [28, 28]}, r"image_size must be a positive integer; it is \[28, 28\]"),
    ],
)
def test_another_or_an_impossible_encoder_is_reported(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^the encoder.* {message}"):
        ClipConfig.from_json(SIZES | change, "the encoder")
