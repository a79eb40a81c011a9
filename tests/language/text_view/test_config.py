from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from vlcore import ConfigError, TensorSource
from vlcore.language.text_view.config import standard_config, standard_quantization

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
PACKED = ("qweight", "qzeros", "scales")


def mistral(window: int | None, context_length: int = 4096) -> dict[str, Any]:
    config = MistralConfig(
        sliding_window=window,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    return standard_config(config, "MistralForCausalLM", context_length=context_length)


# -- architectures


@pytest.mark.parametrize("window", [None, 4096, 5000])
def test_mistral_without_an_effective_window_becomes_llama(window: int | None) -> None:
    config = mistral(window)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 1e6
    assert "sliding_window" not in config
    llama = LlamaConfig.from_dict(config)
    original = MistralConfig()
    for key in ("hidden_size", "head_dim", "num_key_value_heads", "hidden_act", "rms_norm_eps"):
        assert getattr(llama, key) == getattr(original, key)
    assert not llama.attention_bias
    assert not llama.mlp_bias


def test_mistral_with_a_window_stays_mistral() -> None:
    config = mistral(4095)
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["model_type"] == "mistral"
    assert config["sliding_window"] == 4095


def test_other_architectures_are_unchanged() -> None:
    config = standard_config(Qwen2Config(), "Qwen2ForCausalLM", context_length=2048)
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["max_position_embeddings"] == 2048


def test_keys_that_the_class_does_not_define_are_left_out() -> None:
    strange = {"max_sequence_length": 5, "auto_map": {"AutoModel": "x.y"}, "mm_hidden_size": 3}
    config = LlamaConfig.from_dict(strange)
    assert strange.keys() <= config.to_dict().keys()
    values = standard_config(config, "LlamaForCausalLM", context_length=2048)
    assert not strange.keys() & values.keys()
    assert "transformers_version" not in values
    expected = LlamaConfig(architectures=["LlamaForCausalLM"])
    assert LlamaConfig.from_dict(values).to_dict() == expected.to_dict()


# -- quantisation


def packed_layer(prefix: str, new_prefix: str) -> dict[str, TensorSource]:
    names = [f"model.layers.0.mlp.up_proj.{part}" for part in PACKED]
    names += ["model.norm.weight", "lm_head.weight"]
    return {new_prefix + name: TensorSource(prefix + name) for name in names}


@pytest.mark.parametrize("stated", [AWQ, {"quant_method": "made_up", "dynamic": {"a": 1}}])
def test_quantised_tensors_under_their_own_names_keep_their_settings(stated: Any) -> None:
    assert standard_quantization(stated, packed_layer("", ""), "here") == stated


@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (None, None),
        ([], []),
        (["vision_tower", "text.lm_head"], ["lm_head"]),
        (["norm", "head"], ["lm_head", "model.norm"]),
        (["vision_tower"], []),
    ],
)
def test_settings_that_name_modules_follow_a_new_name(
    method: str, stated: list[str] | None, expected: list[str] | None
) -> None:
    config = AWQ | {"quant_method": method, "modules_to_not_convert": stated}
    result = standard_quantization(config, packed_layer("text.", ""), "here")
    assert result == config | {"modules_to_not_convert": expected}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"quant_method": "bitsandbytes"}, r"here: .*\(bitsandbytes\).*not for 'bitsandbytes'"),
        ({"quant_method": "gptq", "dynamic": {"x": {}}}, r"\(gptq\).* not for dynamic"),
        ({}, r"\(None\)"),
        ("awq", "must be an object; it is 'awq'"),
    ],
)
def test_settings_that_cannot_be_renamed_are_refused(stated: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        standard_quantization(stated, packed_layer("text.", ""), "here")


def test_packed_tensors_are_not_cut() -> None:
    name = "model.layers.0.self_attn.q_proj.qweight"
    tensors = {name: TensorSource("joined.qweight", slice(0, 4))}
    with pytest.raises(ConfigError, match=rf"cut 1 tensor\(s\) out of packed ones, {name} first"):
        standard_quantization(AWQ, tensors, "here")
