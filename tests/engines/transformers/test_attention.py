from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_requests import CPU
from tiny_families import TEXT, config_of
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vlcore.engines.transformers.attention import attention_name
from vlcore.engines.transformers.batch import Batch
from vlcore.engines.transformers.cache_layer import AttentionCall, Prefill
from vlcore.engines.transformers.kv_cache import KeyValueLayer
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


class ResultSizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records how many elements the results of operations have."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = func(*args, **kwargs or {})
        for result in results if isinstance(results, tuple) else (results,):
            if isinstance(result, Tensor):
                self.sizes.append(result.numel())
        return results


def test_the_keys_that_a_chunk_attends_to_are_not_copied_for_each_query_head() -> None:
    num_cached, num_new, num_heads, num_key_heads = 40, 4, 6, 2
    num_tokens = num_cached + num_new
    module: Any = SimpleNamespace(num_key_value_groups=num_heads // num_key_heads)
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, num_heads, num_new, 8, generator=draw)
    keys, values = torch.randn(2, 1, num_key_heads, num_tokens, 8, generator=draw)
    distances = torch.arange(num_cached, num_tokens)[:, None] - torch.arange(num_tokens)
    mask = (distances >= 0)[None, None]
    layer = KeyValueLayer("full_attention")
    layer.reserve(64)
    call = AttentionCall(slice(0, 1), 0, 0, num_tokens, mask)
    for columns, begins in ((range(num_cached), True), (range(num_cached, num_tokens), False)):
        layer.begin(Prefill((columns,), {"full_attention": [call]}, begins))
        one = slice(columns.start, columns.stop)
        cached = layer.update(keys[:, :, one], values[:, :, one])
    placeholder = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    attention = AttentionInterface()["vlcore_sdpa"]  # type: ignore[no-untyped-call]
    with ResultSizes() as results:
        output, _ = attention(module, query, *cached, placeholder)
    assert_close(output, sdpa_attention_forward(module, query, keys, values, mask)[0])
    assert 0 < max(results.sizes) < num_heads * num_tokens * 8
