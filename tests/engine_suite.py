"""Tests of what every engine does with a request, for a module that has a fixture ``engine``.

The fixture returns an engine of the checkpoint that ``checkpoints.write_llava`` writes.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from engine_requests import (
    LONG,
    MIXED_OPTIONS,
    SAMPLED,
    answer,
    check_own_options,
    chunks,
    chunks_of_choice,
    request,
    run,
    text,
    token_ids,
)
from transformers import PreTrainedTokenizerBase

from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.detokenizer import Detokenizer
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import ContextLengthError, EngineError, OptionError
from vlcore.prompts.tokenization import TokenizedPrompt


def test_image_embeddings_change_the_answer(engine: Engine) -> None:
    async def body() -> None:
        plain = request(6, image_rows=3)
        other = EngineRequest(plain.prompt, (plain.rows[0] * 8,), plain.config)
        assert await answer(engine, plain) != await answer(engine, other)

    run(body)


def test_max_new_tokens_ends_an_answer(engine: Engine) -> None:
    async def body() -> None:
        for most in (1, 5):
            outputs = await chunks(engine, request(4, max_new_tokens=most))
            assert len(token_ids(outputs)) == most
            assert outputs[-1].finish_reason == "length"
            assert not any(output.finish_reason for output in outputs[:-1])

    run(body)


def test_a_stop_token_ends_an_answer_and_is_not_part_of_it(engine: Engine) -> None:
    async def body() -> None:
        whole = await answer(engine, request(5, max_new_tokens=12))
        index = next(i for i in range(3, 12) if whole[i] not in whole[:i])
        asked = request(5, max_new_tokens=12, stop_token_ids=[whole[index]])
        outputs = await chunks(engine, asked)
        assert token_ids(outputs) == whole[:index]
        assert outputs[-1].finish_reason == "stop"
        forbidden = request(5, max_new_tokens=12, min_new_tokens=12, stop_token_ids=[whole[index]])
        longer = await answer(engine, forbidden)
        assert len(longer) == 12
        assert whole[index] not in longer

    run(body)


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(
    engine: Engine, tokenizer: PreTrainedTokenizerBase
) -> None:
    async def body() -> None:
        outputs = await chunks(engine, request(5, max_new_tokens=16))
        shown = text(outputs)
        word = shown[len(shown) // 2 : len(shown) // 2 + 4]
        stopped = await chunks(engine, request(5, max_new_tokens=16, stop_words=[word]))
        assert text(stopped) == shown.partition(word)[0]
        assert stopped[-1].finish_reason == "stop"
        assert len(token_ids(stopped)) < 16
        template = EngineRequest(
            request(5).prompt, (), GenerationConfig(max_new_tokens=16), (word,)
        )
        assert text(await chunks(engine, template)) == text(stopped)

    run(body)


def test_the_chunks_add_up_to_the_decoded_answer(
    engine: Engine, tokenizer: PreTrainedTokenizerBase
) -> None:
    async def body() -> None:
        outputs = await chunks(engine, request(6, max_new_tokens=24))
        detokenizer = Detokenizer(tokenizer)
        shown = "".join(map(detokenizer.add, token_ids(outputs)))
        assert text(outputs) == shown + detokenizer.finish()
        assert len(outputs) > 10

    run(body)


def test_sampling_with_a_seed_does_not_depend_on_the_batch(engine: Engine) -> None:
    async def body() -> None:
        options: dict[str, Any] = {"do_sample": True, "random_seed": 5, "temperature": 2.0}
        asked = request(6, seed=1, **options)
        alone = await answer(engine, asked)
        others = [answer(engine, request(9, seed=i, do_sample=True)) for i in range(3)]
        batched, *_ = await asyncio.gather(answer(engine, asked), *others)
        assert batched == alone
        assert batched != await answer(engine, request(6, seed=1, **options | {"random_seed": 6}))

    run(body)


def test_a_closed_event_loop_does_not_stop_the_engine(engine: Engine) -> None:
    async def leave() -> None:
        generated = engine.generate(request(4, max_new_tokens=LONG))
        await anext(generated)

    expected: list[tuple[int, ...]] = []

    async def body() -> None:
        expected.append(await answer(engine, request(4)))

    run(body)
    asyncio.run(leave())
    run(body)
    assert expected[0] == expected[1]


def test_requests_are_checked(engine: Engine) -> None:
    async def body() -> None:
        with pytest.raises(EngineError, match="prompt is empty"):
            await chunks(engine, EngineRequest(TokenizedPrompt(())))

    run(body)


def test_answers_to_one_prompt_end_one_by_one(engine: Engine) -> None:
    async def body() -> None:
        asked = request(5, n=3, **SAMPLED, max_new_tokens=30)
        whole = await chunks(engine, asked)
        stop = token_ids(chunks_of_choice(whole, 1))[2]
        outputs = await chunks(
            engine, request(5, n=3, **SAMPLED, max_new_tokens=30, stop_token_ids=[stop])
        )
        for choice in range(3):
            before = token_ids(chunks_of_choice(whole, choice))
            index = before.index(stop) if stop in before else len(before)
            assert token_ids(chunks_of_choice(outputs, choice)) == before[:index]

    run(body)


def test_banned_strings_never_appear_however_they_are_tokenized(engine: Engine) -> None:
    async def body() -> None:
        plain = text(await chunks(engine, request(5, max_new_tokens=40)))
        # Every pair of neighbours in the answer, as banned strings, which span tokens.
        pairs = sorted({plain[i : i + 2] for i in range(0, 30, 3)} - {"��"})
        for options in ({}, SAMPLED):
            asked = request(5, max_new_tokens=40, bad_words=pairs, **options)
            outputs = await chunks(engine, asked)
            assert len(token_ids(outputs)) == 40
            assert not [pair for pair in pairs if pair in text(outputs)]

    run(body)


def test_logprobs_of_zero_alternatives_hold_the_token_only(engine: Engine) -> None:
    async def body() -> None:
        outputs = await chunks(engine, request(6, logprobs=0))
        assert [list(output.logprobs[0]) for output in outputs] == [[t] for t in token_ids(outputs)]
        assert all(output.logprobs == () for output in await chunks(engine, request(6)))

    run(body)


@pytest.mark.parametrize("skips", [True, False])
def test_a_stop_string_that_is_a_special_token_ends_the_answer_by_its_id(
    engine: Engine, skips: bool
) -> None:
    async def body() -> None:
        allowed = {2, 300}  # 2 is </s>
        asked = request(
            5,
            stop_words=["</s>"],
            skip_special_tokens=skips,
            repetition_penalty=5.0,
            bad_token_ids=[token_id for token_id in range(700) if token_id not in allowed],
        )
        outputs = await chunks(engine, asked)
        assert outputs[-1].finish_reason == "stop"
        assert set(token_ids(outputs)) <= {300}

    run(body)


def test_no_part_of_a_stop_string_that_spans_tokens_is_emitted(engine: Engine) -> None:
    async def body() -> None:
        whole = await chunks(engine, request(5, max_new_tokens=24))
        shown = text(whole)
        words = [shown[i : i + 5] for i in range(3, 20, 4)]
        for word in words:
            asked = EngineRequest(
                TokenizedPrompt(request(5).prompt.token_ids),
                (),
                request(5, max_new_tokens=24, stop_words=[word], logprobs=0).config,
            )
            outputs = await chunks(engine, asked)
            assert text(outputs) == shown.partition(word)[0]
            assert outputs[-1].finish_reason == "stop"

    run(body)


def test_concurrent_requests_of_different_lengths_have_the_results_of_single_ones(
    engine: Engine,
) -> None:
    async def body() -> None:
        asked = [
            request(length, seed=length, image_rows=rows, max_new_tokens=most)
            for length, rows, most in [(2, 0, 9), (17, 4, 3), (5, 9, 14), (30, 0, 6), (1, 0, 1)]
        ]
        alone = [await answer(engine, one) for one in asked]
        together = await asyncio.gather(*(answer(engine, one) for one in asked))
        assert list(together) == alone
        assert [len(one) for one in together] == [9, 3, 14, 6, 1]

    run(body)


def test_concurrent_requests_keep_their_own_options(engine: Engine) -> None:
    run(lambda: check_own_options(engine, MIXED_OPTIONS))


def test_the_answers_of_a_request_are_those_of_single_requests(engine: Engine) -> None:
    async def body() -> None:
        outputs = await chunks(engine, request(9, image_rows=3, n=4, **SAMPLED))
        answers = [token_ids(chunks_of_choice(outputs, choice)) for choice in range(4)]
        assert len(set(answers)) == 4
        assert all(len(one) == 8 for one in answers)
        ends = [output.choice for output in outputs if output.finish_reason is not None]
        assert sorted(ends) == [0, 1, 2, 3]
        for choice in (0, 2):
            options = {**SAMPLED, "random_seed": SAMPLED["random_seed"] + choice}
            assert await answer(engine, request(9, image_rows=3, **options)) == answers[choice]

    run(body)


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 0}, {"do_sample": True, "top_p": 0}]
)
def test_greedy_answers_are_all_the_same(engine: Engine, options: dict[str, Any]) -> None:
    async def body() -> None:
        alone = await chunks(engine, request(9, image_rows=3, logprobs=2))
        outputs = await chunks(engine, request(9, image_rows=3, n=3, logprobs=2, **options))
        for choice in range(3):
            assert token_ids(chunks_of_choice(outputs, choice)) == token_ids(alone)
            assert text(chunks_of_choice(outputs, choice)) == text(alone)

    run(body)


def test_a_request_that_is_cancelled_does_not_affect_others(engine: Engine) -> None:
    async def body() -> None:
        asked = [request(4, seed=i, max_new_tokens=LONG if i == 1 else 40) for i in range(3)]
        expected = [await answer(engine, asked[i]) for i in (0, 2)]
        started = asyncio.Event()

        async def read() -> None:
            async for _ in engine.generate(asked[1]):
                started.set()

        cancelled = asyncio.create_task(read())
        await started.wait()
        others = [asyncio.create_task(answer(engine, asked[i])) for i in (0, 2)]
        cancelled.cancel()
        assert await asyncio.gather(*others) == expected
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await answer(engine, asked[0]) == expected[0]

    run(body)


def test_a_prompt_as_long_as_the_context_is_refused(engine: Engine) -> None:
    async def body() -> None:
        with pytest.raises(ContextLengthError, match="context length is 512"):
            await chunks(engine, request(512))
        outputs = await chunks(engine, request(510, max_new_tokens=50))
        assert len(token_ids(outputs)) == 2
        assert outputs[-1].finish_reason == "length"

    run(body)


def test_options_outside_of_the_vocabulary_are_refused(engine: Engine) -> None:
    async def body() -> None:
        for options in ({"bad_token_ids": [700]}, {"logprobs": 701}, {"logit_bias": {700: 1}}):
            with pytest.raises(OptionError, match="700"):
                await chunks(engine, request(4, **options))
        ends = [0, 700, 10**9]
        assert len(await answer(engine, request(4, stop_token_ids=ends))) == 8

    run(body)


def test_a_bias_makes_a_token_certain_or_impossible(engine: Engine) -> None:
    async def body() -> None:
        assert await answer(engine, request(5, logit_bias={417: 100})) == (417,) * 8
        plain = await answer(engine, request(5))
        without = await answer(engine, request(5, logit_bias=dict.fromkeys(plain, -100)))
        assert not set(plain) & set(without)

    run(body)


def test_a_repetition_penalty_does_not_count_the_positions_of_images(engine: Engine) -> None:
    async def body() -> None:
        asked = request(6, image_rows=4, repetition_penalty=50.0, max_new_tokens=1)
        expected = await answer(engine, asked)
        for filler in expected:  # the token that would be chosen is at the image's positions
            ids = list(asked.prompt.token_ids)
            for span in asked.prompt.spans:
                ids[span.start : span.stop] = [filler] * (span.stop - span.start)
            prompt = TokenizedPrompt(tuple(ids), asked.prompt.spans)
            assert await answer(engine, replace(asked, prompt=prompt)) == expected

    run(body)
