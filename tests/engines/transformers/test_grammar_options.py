"""Answers of the embedded engine that have the form of a grammar, with the other options."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from engine_requests import CPU, chunks, request, run, text, token_ids, watch_batches
from transformers import PreTrainedTokenizerBase

from vlcore.engines.base import EngineOutput, EngineRequest
from vlcore.engines.grammar import Grammar
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import EngineError, GrammarError
from vlcore.language.model import LanguageModel

SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "random_seed": 3}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"enum": [1, 20, None]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TransformersEngine]:
    made = TransformersEngine(language_model, tokenizer, device=CPU, dtype=torch.float32)
    yield made
    asyncio.run(made.close())


def asked(grammar: Grammar, **options: Any) -> EngineRequest:
    """A request whose end tokens end its answer."""
    stated: dict[str, Any] = {"grammar": grammar, "max_new_tokens": 100, "ignore_eos": False}
    return request(6, **stated | options)


def generate(engine: TransformersEngine, grammar: Grammar, **options: Any) -> list[EngineOutput]:
    outputs: list[EngineOutput] = []

    async def body() -> None:
        outputs.extend(await chunks(engine, asked(grammar, **options)))

    run(body)
    return outputs


@pytest.mark.parametrize("options", [{}, SAMPLED])
def test_an_answer_is_json_that_is_valid_for_the_schema(
    engine: TransformersEngine, options: dict[str, Any]
) -> None:
    outputs = generate(engine, Grammar.json_schema(SCHEMA), **options)
    answer = json.loads(text(outputs))
    assert list(answer) == ["name", "age"]
    assert len(answer["name"]) <= 6
    assert answer["age"] in (1, 20, None)
    assert outputs[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    "pattern", [r"[a-c]{2,4}(x|yz)!", r"\d+\.\d{2}", "日本(語|人)?", r"(\n| )z"]
)
@pytest.mark.parametrize("options", [{}, SAMPLED])
def test_an_answer_matches_the_regular_expression(
    engine: TransformersEngine, pattern: str, options: dict[str, Any]
) -> None:
    outputs = generate(engine, Grammar.regex(pattern), **options)
    assert re.fullmatch(pattern, text(outputs), re.ASCII)
    assert outputs[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    "choices", [["yes", "no"], ['"q" \\ \n\t', "% {é} 😀"], ["a", "ab", "abc"], ["/a/", "start: b"]]
)
def test_an_answer_is_one_of_the_choices(engine: TransformersEngine, choices: list[str]) -> None:
    seen = {
        text(generate(engine, Grammar.choice(choices), **SAMPLED | {"random_seed": seed}))
        for seed in range(8)
    }
    assert seen <= set(choices)
    assert seen


@pytest.mark.parametrize("only", ["</s>", "a<s>b"])
def test_the_text_of_a_special_token_is_written_as_other_text(
    engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase, only: str
) -> None:
    for grammar, expected in (
        (Grammar.choice([only]), only),
        (Grammar.json_schema({"const": only}), f'"{only}"'),
    ):
        outputs = generate(engine, grammar)
        assert text(outputs) == expected
        assert not set(token_ids(outputs)) & set(tokenizer.all_special_ids)


def test_an_end_token_is_allowed_exactly_where_the_grammar_is_complete(
    engine: TransformersEngine,
) -> None:
    """A bias of 100 selects the end token wherever it is allowed."""
    bias = {2: 100.0}
    assert text(generate(engine, Grammar.regex("[ab]{3,}"), logit_bias=bias)).count("") == 4
    whole = generate(engine, Grammar.json_schema(SCHEMA), logit_bias=bias)
    assert set(json.loads(text(whole))) == {"name", "age"}
    assert 2 not in token_ids(whole)


def test_a_complete_answer_ends_without_another_step(engine: TransformersEngine) -> None:
    outputs = generate(engine, Grammar.choice(["yes"]), ignore_eos=True, min_new_tokens=50)
    assert text(outputs) == "yes"
    assert outputs[-1].finish_reason == "stop"
    assert outputs[-1].token_ids  # the last token and the end are one chunk


def test_an_answer_of_exactly_max_new_tokens_is_complete(engine: TransformersEngine) -> None:
    num_tokens = len(token_ids(generate(engine, Grammar.choice(["yes"]))))
    for limit, reason in ((num_tokens, "stop"), (num_tokens - 1, "length")):
        outputs = generate(engine, Grammar.choice(["yes"]), max_new_tokens=limit)
        assert outputs[-1].finish_reason == reason


def test_min_new_tokens_delays_the_end_where_more_can_follow(engine: TransformersEngine) -> None:
    bias = {2: 100.0}
    outputs = generate(engine, Grammar.regex("[ab]*"), min_new_tokens=5, logit_bias=bias)
    assert len(token_ids(outputs)) == 5
    assert re.fullmatch("[ab]+", text(outputs))
    ignored = generate(engine, Grammar.regex("[ab]*"), ignore_eos=True, max_new_tokens=7)
    assert (len(token_ids(ignored)), ignored[-1].finish_reason) == (7, "length")


def test_stop_strings_and_stop_tokens_end_an_answer_at_any_time(
    engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    outputs = generate(engine, Grammar.json_schema(SCHEMA), stop_words=[":"])
    assert text(outputs).strip().rstrip('" ').endswith("name")
    colon = tokenizer.convert_tokens_to_ids("<0x3A>")
    stops = [i for i in range(700) if str(tokenizer.decode([i])).strip() == ":"] + [colon]
    outputs = generate(engine, Grammar.json_schema(SCHEMA), stop_token_ids=stops)
    assert ":" not in text(outputs)
    assert outputs[-1].finish_reason == "stop"


def test_banned_strings_and_tokens_compose_with_a_grammar(
    engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    grammar = Grammar.regex("[ab]{6}")
    assert text(generate(engine, grammar, bad_words=["a"])) == "bbbbbb"
    banned = [i for i in range(700) if "b" in tokenizer.decode([i])] + [3 + ord("b")]
    assert text(generate(engine, grammar, bad_token_ids=banned)) == "aaaaaa"
    # Where they leave nothing, an answer that may end ends, and any other fails.
    ended = generate(engine, Grammar.regex("[ab]{0,6}"), bad_words=["a", "b"])
    assert (text(ended), ended[-1].finish_reason) == ("", "stop")
    ended = generate(engine, Grammar.regex("b*"), bad_token_ids=[*banned, 2])
    assert (text(ended), ended[-1].finish_reason) == ("", "stop")
    with pytest.raises(EngineError, match="exclude all tokens that the grammar allows"):
        generate(engine, Grammar.regex("b"), bad_token_ids=banned)
    with pytest.raises(EngineError, match="bad_words exclude all"):
        generate(engine, Grammar.regex("b"), bad_words=["b"])


def test_log_probabilities_are_those_of_the_model(engine: TransformersEngine) -> None:
    outputs = generate(engine, Grammar.choice(["yes"]), logprobs=2, output_logits="generation")
    for output in outputs:
        assert output.logits is not None
        expected = output.logits[0].log_softmax(-1)
        (token_id,) = output.token_ids
        assert output.logprobs[0][token_id] == pytest.approx(float(expected[token_id]), abs=1e-4)
        assert len(output.logprobs[0]) >= 2


def test_n_answers_follow_the_grammar_independently(engine: TransformersEngine) -> None:
    outputs = generate(engine, Grammar.json_schema(SCHEMA), n=4, **SAMPLED)
    texts = {text([o for o in outputs if o.choice == choice]) for choice in range(4)}
    assert len(texts) > 1
    assert all(set(json.loads(answer)) == {"name", "age"} for answer in texts)


def test_grammars_of_one_batch_do_not_affect_each_other(engine: TransformersEngine) -> None:
    async def body() -> None:
        requests = [
            asked(Grammar.json_schema(SCHEMA)),
            asked(Grammar.json_schema(SCHEMA), **SAMPLED),
            asked(Grammar.regex("[a-z ]{20}!")),
            asked(Grammar.choice(["yes", "no"])),
            request(6, max_new_tokens=30),
            request(6, max_new_tokens=30, **SAMPLED),
        ]
        alone = [token_ids(await chunks(engine, one)) for one in requests]
        sizes = watch_batches(engine)
        together = await asyncio.gather(*(chunks(engine, one) for one in requests))
        assert max(sizes) > 3
        assert [token_ids(one) for one in together] == alone

    run(body)


def test_a_grammar_that_fails_in_an_answer_fails_this_request_alone(
    engine: TransformersEngine,
) -> None:
    """The repetition can be compiled, and has too many states to be followed."""

    async def body() -> None:
        results = await asyncio.gather(
            chunks(engine, asked(Grammar.regex("(a{1000}){1000}"))),
            chunks(engine, request(5)),
            return_exceptions=True,
        )
        assert isinstance(results[0], GrammarError)
        assert "the grammar cannot be followed after" in str(results[0])
        assert isinstance(results[1], list)

    run(body)


def test_a_grammar_that_cannot_be_compiled_is_refused_before_the_prompt_is_computed(
    engine: TransformersEngine,
) -> None:
    async def body() -> None:
        sizes = watch_batches(engine)
        with pytest.raises(GrammarError, match="at /items: Invalid type"):
            await chunks(engine, asked(Grammar.json_schema({"items": {"type": "x"}})))
        with pytest.raises(GrammarError, match="at /items: Invalid type"):
            await engine.prepare(asked(Grammar.json_schema({"items": {"type": "x"}})).config)
        assert sizes == []

    run(body)
