"""Answers of vLLM that have the form of a grammar."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from engine_requests import answer, chunks, request, run, text

from vlcore.engines.base import EngineRequest
from vlcore.engines.grammar import Grammar
from vlcore.engines.vllm.engine import VllmEngine
from vlcore.errors import GrammarError, OptionError

SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"enum": [1, 20, None]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def asked(grammar: Grammar, **options: Any) -> EngineRequest:
    stated: dict[str, Any] = {"grammar": grammar, "max_new_tokens": 400, "ignore_eos": False}
    return request(6, **stated | options)


@pytest.mark.parametrize("options", [{}, {"ignore_eos": True, "min_new_tokens": 200}])
def test_an_answer_is_json_that_is_valid_for_the_schema(
    engine: VllmEngine, options: dict[str, Any]
) -> None:
    async def body() -> None:
        for seed in range(3):
            grammar = Grammar.json_schema(SCHEMA)
            outputs = await chunks(
                engine, asked(grammar, random_seed=seed, image_rows=4, **SAMPLED | options)
            )
            written = json.loads(text(outputs))
            assert list(written) == ["name", "age"]
            assert len(written["name"]) <= 6
            assert written["age"] in (1, 20, None)
            assert outputs[-1].finish_reason == "stop"

    run(body)


@pytest.mark.parametrize("pattern", [r"[a-c]{2,4}(x|yz)!", r"\d+\.\d{2}", "日本(語|人)?"])
def test_an_answer_matches_the_regular_expression(engine: VllmEngine, pattern: str) -> None:
    async def body() -> None:
        outputs = await chunks(engine, asked(Grammar.regex(pattern), random_seed=1, **SAMPLED))
        assert re.fullmatch(pattern, text(outputs), re.ASCII)
        assert outputs[-1].finish_reason == "stop"

    run(body)


def test_an_answer_is_one_of_the_choices(engine: VllmEngine) -> None:
    async def body() -> None:
        choices = ["a", "ab", '"q" \\ \n', "é 😀"]
        outputs = await chunks(engine, asked(Grammar.choice(choices), n=4, **SAMPLED))
        for choice in range(4):
            assert text([one for one in outputs if one.choice == choice]) in choices

    run(body)


def test_a_grammar_that_cannot_be_compiled_is_refused(engine: VllmEngine) -> None:
    async def body() -> None:
        for grammar in (Grammar.regex("(a"), Grammar.json_schema({"type": "no such type"})):
            with pytest.raises(GrammarError):
                await chunks(engine, asked(grammar))
        with pytest.raises(OptionError, match="bad_words cannot be combined with a grammar"):
            await chunks(engine, asked(Grammar.choice(["a"]), bad_words=["b"]))
        assert len(await answer(engine, request(4))) == 8

    run(body)
