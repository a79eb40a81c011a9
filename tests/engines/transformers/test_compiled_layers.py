from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from engine_requests import CPU, answer, run
from tiny_families import BuiltLanguageModel, tiny_family
from torch.testing import assert_close
from transformers import PreTrainedTokenizerBase

from vlcore.engines.transformers import compiled_layers
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.engines.transformers.graph_call import RepeatedCall
from vlcore.engines.transformers.layer_compiler import has_compiler
from vlcore.errors import EngineUnavailableError


def make_engine(
    name: str, tokenizer: PreTrainedTokenizerBase, device: torch.device = CPU, **options: Any
) -> TransformersEngine:
    config = TransformersEngineConfig(max_num_seqs=4, max_cached_tokens=400, **options)
    model = BuiltLanguageModel(tiny_family(name))
    return TransformersEngine(model, tokenizer, device=device, dtype=torch.float32, config=config)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["qwen3_vl", "gemma2"])
def test_compiled_steps_give_the_same_answers(
    name: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """One model has positions on several axes, the other attention of its own and two types."""
    family = tiny_family(name)
    engine = make_engine(name, tokenizer, compile=True)
    batch = engine._batch
    images = [3] if name == "qwen3_vl" else []
    asked = [
        family.request(number + 5, images if number % 2 else [], max_new_tokens=4 + 2 * number)
        for number in range(6)
    ]

    async def body() -> None:
        with torch.inference_mode():
            for size in (1, 2, 3, 4):
                expected = batch._run_probe(size)
                assert batch._compiled_layers is not None
                with batch._compiled_layers.use(), counted_calls() as calls:
                    assert_close(batch._run_probe(size), expected)
                assert len(calls) == len(batch._compiled_layers._layers)
        answers = await asyncio.gather(*(answer(engine, one.request) for one in asked))
        assert answers == [one.expected() for one in asked]
        await engine.close()

    run(body)


@contextmanager
def counted_calls() -> Iterator[list[RepeatedCall]]:
    """Collect the calls of compiled graphs."""
    calls = list[RepeatedCall]()
    call = RepeatedCall.__call__

    def counted(self: RepeatedCall, *arguments: Any) -> torch.Tensor:
        calls.append(self)
        return call(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RepeatedCall, "__call__", counted)
        yield calls


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lfm2", "some of its layers keep a state"),
        ("deepseek_v3", "computes the keys and values of its attention from the cached ones"),
    ],
)
def test_a_model_that_cannot_be_compiled_is_refused_by_name(
    name: str, reason: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    class_name = type(tiny_family(name).model).__name__
    with pytest.raises(EngineUnavailableError, match=f"of {class_name} cannot .*{reason}"):
        make_engine(name, tokenizer, compile=True)


def test_without_a_compiler_the_engine_does_not_start(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_layers, "has_compiler", lambda: False)
    with pytest.raises(EngineUnavailableError, match="needs a C\\+\\+ compiler"):
        make_engine("qwen3_vl", tokenizer, compile=True)
