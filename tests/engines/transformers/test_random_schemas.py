"""Every answer is valid for its schema, for random schemas of hypothesis-jsonschema."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine_requests import CPU, chunks, request, run, text
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from random_schemas import schemas
from transformers import PreTrainedTokenizerBase

from vlcore.engines.grammar import Grammar
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.language.model import LanguageModel

_CHECKS = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def engine(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TransformersEngine]:
    made = TransformersEngine(language_model, tokenizer, device=CPU, dtype=torch.float32)
    yield made
    asyncio.run(made.close())


def check(engine: TransformersEngine, schema: Any, seed: int) -> None:
    grammar = Grammar.json_schema(schema)
    options: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "random_seed": seed, "n": 2}

    async def body() -> None:
        asked = request(4, grammar=grammar, max_new_tokens=200, ignore_eos=False, **options)
        outputs = await chunks(engine, asked)
        for choice in range(2):
            answer = [output for output in outputs if output.choice == choice]
            assert answer[-1].finish_reason == "stop", text(answer)
            value = json.loads(text(answer))
            Draft202012Validator(schema, format_checker=FormatChecker()).validate(value)

    run(body)


@settings(_CHECKS, max_examples=15)
@given(schema=schemas(), seed=st.integers(0, 99))
def test_answers_are_valid_for_random_schemas(
    engine: TransformersEngine, schema: Any, seed: int
) -> None:
    check(engine, schema, seed)


@pytest.mark.slow
@settings(_CHECKS, max_examples=1000)
@given(schema=schemas(), seed=st.integers(0, 99))
def test_answers_are_valid_for_a_thousand_random_schemas(
    engine: TransformersEngine, schema: Any, seed: int
) -> None:
    check(engine, schema, seed)
