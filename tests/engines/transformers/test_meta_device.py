"""The size of the cache, without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_families import TEXT, config_of

from vlcore.checkpoint.weights import empty_weights
from vlcore.engines.transformers.batch import Batch
from vlcore.engines.transformers.meta_device import META, measure_cache
from vlcore.errors import EngineUnavailableError
from vlcore.language.causal_lm import build_causal_lm

_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
_ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"factor": 2.0},
    "linear": {"factor": 2.0},
    "llama3": {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": _FACTORS,
    "yarn": {"factor": 2.0},
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"rope {rope}": ("llama", {"rope_parameters": {"rope_type": rope}}) for rope in _ROPES},
    "mixtral": ("mixtral", _EXPERTS),
    "qwen3_moe": ("qwen3_moe", _EXPERTS | {"moe_intermediate_size": 16}),
    "gpt_oss": ("gpt_oss", _EXPERTS | {"rope_parameters": {"rope_type": "default"}}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
}


def build(name: str) -> Any:
    model_type, values = MODELS[name]
    values = dict(values)
    if "rope_parameters" in values:
        rope = values["rope_parameters"]["rope_type"]
        values["rope_parameters"] = {
            "rope_type": rope,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 128,
            **_ROPES.get(rope, {}),
        }
    return build_causal_lm(config_of(model_type, **TEXT | values))


def sizes(batch: Batch) -> tuple[int, int]:
    return batch.bytes_per_token, batch.bytes_per_sequence


@pytest.mark.parametrize("name", MODELS)
def test_the_size_of_the_cache_is_known_without_weights(name: str) -> None:
    with empty_weights():
        model = build(name)
    measured = sizes(measure_cache(model.to(META)))
    batch = Batch(build(name).eval(), torch.device("cpu"), 1)
    with torch.inference_mode():
        batch.measure_cache()
    assert measured == sizes(batch)


def test_a_model_that_ignores_the_cache_is_refused() -> None:
    config = config_of("mamba", **TEXT | {"state_size": 4})
    with pytest.raises(EngineUnavailableError, match="MambaForCausalLM, because it does not keep"):
        measure_cache(build_causal_lm(config).to(META))  # type: ignore[arg-type]
