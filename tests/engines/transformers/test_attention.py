from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_requests import CPU
from tiny_families import TEXT, config_of
from torch.testing import assert_close
from transformers import PreTrainedModel

from vlcore.engines.transformers.attention import attention_name
from vlcore.engines.transformers.batch import Batch
from vlcore.errors import EngineUnavailableError
from vlcore.language.causal_lm import build_causal_lm


def build(model_type: str, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build_causal_lm(config_of(model_type, **TEXT | options))
    model.train(False)
    return model


@pytest.mark.parametrize("model_type", ["llama", "gpt_oss"])  # SDPA and eager attention
def test_a_model_computes_the_same_with_other_caches(model_type: str) -> None:
    token_ids = torch.arange(10, 19)[None]
    model = build(model_type)
    with torch.inference_mode():
        before = model(input_ids=token_ids).logits
        Batch(model, CPU, max_num_seqs=1)
        assert_close(model(input_ids=token_ids).logits, before, rtol=0, atol=0)
        Batch(model, CPU, max_num_seqs=1)  # a second time


def test_another_attention_is_refused() -> None:
    config = config_of("llama", attn_implementation="flex_attention")
    with pytest.raises(EngineUnavailableError, match=r"'sdpa' or 'eager'; .* 'flex_attention'"):
        attention_name(config)


def test_a_model_that_masks_tokens_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    batch = Batch(model, CPU, max_num_seqs=1)
    mask = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    monkeypatch.setattr(batch._masks, "placeholder", mask)
    with torch.inference_mode(), pytest.raises(EngineUnavailableError, match="LlamaAttention"):
        batch.measure_cache()


def test_a_model_with_an_attention_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    batch = Batch(model, CPU, max_num_seqs=1)
    model.config._attn_implementation = "sdpa"  # reads the cache without the engine's function
    with torch.inference_mode(), pytest.raises(EngineUnavailableError, match="does not keep"):
        batch.measure_cache()
