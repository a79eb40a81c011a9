"""Models whose results would be wrong are refused when they are loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_requests import CPU
from tiny_families import TEXT, config_of
from torch import Tensor
from transformers import PreTrainedModel

from vlcore.engines.transformers.batch import Batch
from vlcore.engines.transformers.model_check import check_model
from vlcore.errors import EngineUnavailableError
from vlcore.language.causal_lm import build_causal_lm

_SMALL: dict[str, Any] = {
    "d_model": 16,
    "decoder_layers": 1,
    "encoder_layers": 1,
    "decoder_attention_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "encoder_ffn_dim": 16,
}
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "bart": (_SMALL, "BartForCausalLM, because it counts positions itself"),
    "bert": ({}, "because its tokens attend to later ones"),
    "bloom": ({"n_layer": 1, "n_head": 2}, "because a forward pass over two tokens failed"),
    "gemma3n_text": (
        {
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": None,
            "layer_types": ["full_attention"] * 3,
            "laurel_rank": 4,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": TEXT["vocab_size"],
        },
        "Gemma3nForCausalLM, because it reads the token ids",
    ),
}


def build(model_type: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build_causal_lm(config_of(model_type, **TEXT | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.train(False)
    return model


@pytest.mark.parametrize("model_type", MODELS)
def test_a_model_that_reads_prompts_in_another_way_is_refused(model_type: str) -> None:
    options, message = MODELS[model_type]
    batch = Batch(build(model_type, **options), CPU, max_num_seqs=1)
    with torch.inference_mode(), pytest.raises(EngineUnavailableError, match=message):
        batch.check()


def test_a_model_without_positions_is_checked_in_chunks() -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(0))

    def same() -> Tensor:
        return logits

    check_model("Model", same, same, same, lambda: logits + 1e-4)
    check_model("Model", same, same, same, None)
    with pytest.raises(EngineUnavailableError, match="Model, because it counts positions"):
        check_model("Model", same, same, same, lambda: logits.flip(0))


def test_a_model_that_reads_positions_is_not_checked_in_chunks() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0])
    check_model("Model", lambda: logits, lambda: logits, lambda: 5 * logits, pytest.fail)


def test_a_model_that_returns_nan_is_not_refused() -> None:
    check_model("Model", *[lambda: torch.full((4,), torch.nan)] * 4)
