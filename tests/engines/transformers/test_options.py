"""Generation options in the embedded engine, mixed in one batch."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch
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
    token_ids,
    watch_batches,
)
from held_engine import until_idle
from transformers import PreTrainedTokenizerBase

from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import EngineError, OptionError


def model_logits(engine: TransformersEngine, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = engine._model(input_ids=torch.tensor([ids])).logits[0]
    return logits


def test_requests_of_one_batch_keep_their_own_options(engine: TransformersEngine) -> None:
    async def body() -> None:
        sizes = watch_batches(engine)
        logits = [{"output_logits": "generation"}, {"output_logits": "all"}]
        await check_own_options(engine, [*MIXED_OPTIONS, *logits])
        assert max(sizes) > 6

    run(body)


# -- several answers


def test_n_answers_share_a_prompt(engine: TransformersEngine) -> None:
    async def body() -> None:
        sizes = watch_batches(engine)
        await chunks(engine, request(9, image_rows=3, n=4, **SAMPLED))
        assert sizes[:2] == [1, 4]  # one prompt, then four answers

    run(body)


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "temperature": 0}, {"do_sample": True, "top_p": 0}]
)
def test_greedy_answers_are_generated_once_and_repeated(
    engine: TransformersEngine, options: dict[str, Any]
) -> None:
    async def body() -> None:
        alone = await chunks(engine, request(9, image_rows=3, logprobs=2))
        sizes = watch_batches(engine)
        outputs = await chunks(engine, request(9, image_rows=3, n=3, logprobs=2, **options))
        assert set(sizes) == {1}
        for choice in range(3):
            assert [replace(o, choice=0) for o in chunks_of_choice(outputs, choice)] == alone

    run(body)


def test_a_failure_of_one_answer_ends_the_request(engine: TransformersEngine) -> None:
    async def body() -> None:
        asked = request(5, n=3, **SAMPLED, max_new_tokens=LONG)
        sequences: list[Any] = []
        prefill = engine._batch.prefill

        def spoil(prompts: Any) -> Any:
            sequences.extend(prompts[0].group)
            prompts[0].group[1]._detokenizer.add = None
            return prefill(prompts)

        engine._batch.prefill = spoil  # type: ignore[assignment, method-assign]
        with pytest.raises(EngineError, match="could not be continued: TypeError"):
            await chunks(engine, asked)
        engine._batch.prefill = prefill  # type: ignore[method-assign]
        await until_idle(engine)
        assert [sequence.is_finished for sequence in sequences] == [True] * 3

    run(body)


def test_too_many_answers_are_refused_before_any_is_created(engine: TransformersEngine) -> None:
    async def body() -> None:
        with pytest.raises(OptionError, match="n=10000000000 answers"):
            await chunks(engine, request(4, n=10**10, do_sample=True))

    run(body)


# -- what may come


def test_banned_strings_that_exclude_everything_fail_their_request_only(
    engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    async def body() -> None:
        every = {character for i in range(700) for character in tokenizer.decode([i])}
        good = await answer(engine, request(4))
        asked = request(5, bad_words=sorted({*every, " "}), skip_special_tokens=False)
        results = await asyncio.gather(
            answer(engine, asked),
            answer(engine, request(4)),
            return_exceptions=True,
        )
        assert isinstance(results[0], EngineError)
        assert "bad_words exclude all of the 1024 most likely" in str(results[0])
        assert results[1] == good

    run(body)


def test_options_that_allow_no_first_token_are_refused(engine: TransformersEngine) -> None:
    async def body() -> None:
        asked = request(
            4, min_new_tokens=1, stop_token_ids=range(300), bad_token_ids=range(300, 700)
        )
        with pytest.raises(OptionError, match="every token of the vocabulary is an end token or"):
            await chunks(engine, asked)
        assert await answer(engine, request(4, stop_token_ids=[0, 700, 10**9])) is not None

    run(body)


# -- logprobs and logits


def test_logprobs_are_those_of_the_model(engine: TransformersEngine) -> None:
    async def body() -> None:
        for options in ({}, {**SAMPLED, "repetition_penalty": 1.5}):
            asked = request(6, logprobs=3, **options)
            outputs = await chunks(engine, asked)
            ids = (*asked.prompt.token_ids, *token_ids(outputs))
            expected = model_logits(engine, ids)[5:-1].log_softmax(-1)
            got = [logprobs for output in outputs for logprobs in output.logprobs]
            assert len(got) == len(expected) == 8
            for token_id, logprobs, row in zip(ids[6:], got, expected, strict=True):
                assert next(iter(logprobs)) == token_id
                most_likely = row.topk(3).indices.tolist()
                assert list(logprobs) == list(dict.fromkeys([token_id, *most_likely]))
                values = torch.tensor(list(logprobs.values()))
                torch.testing.assert_close(values, row[list(logprobs)], atol=1e-5, rtol=0)

    run(body)


@pytest.mark.parametrize("wanted", ["generation", "all"])
def test_output_logits_are_those_of_the_model(engine: TransformersEngine, wanted: str) -> None:
    async def body() -> None:
        asked = request(6, output_logits=wanted)
        others = [asyncio.create_task(answer(engine, request(9, seed=i))) for i in range(3)]
        outputs = await chunks(engine, asked)
        await asyncio.gather(*others)
        ids = (*asked.prompt.token_ids, *token_ids(outputs))
        expected = model_logits(engine, ids)
        rows = [output.logits for output in outputs]
        got = torch.cat([row for row in rows if row is not None])
        torch.testing.assert_close(got, expected[5:-1], atol=1e-5, rtol=0)
        first, *later = outputs
        assert all(output.prompt_logits is None for output in later)
        if wanted == "all":
            assert first.prompt_logits is not None
            torch.testing.assert_close(first.prompt_logits, expected[:6], atol=1e-5, rtol=0)
        else:
            assert first.prompt_logits is None

    run(body)


def test_the_token_that_ends_an_answer_has_no_logits(engine: TransformersEngine) -> None:
    async def body() -> None:
        first = (await answer(engine, request(6)))[0]
        asked = request(6, output_logits="all", logprobs=1, stop_token_ids=[first])
        (only,) = await chunks(engine, asked)
        assert (only.token_ids, only.logprobs, only.logits) == ((), (), None)
        assert only.finish_reason == "stop"
        assert only.prompt_logits is not None

    run(body)


def test_logits_are_ordinary_tensors_that_keep_no_other_memory_alive(
    engine: TransformersEngine,
) -> None:
    async def body() -> None:
        others = [asyncio.create_task(answer(engine, request(9, seed=i))) for i in range(3)]
        outputs = await chunks(engine, request(6, output_logits="all"))
        await asyncio.gather(*others)
        for logits in (outputs[0].prompt_logits, *(output.logits for output in outputs)):
            assert logits is not None
            logits.add_(1)
            assert logits.untyped_storage().nbytes() == logits.nbytes

    run(body)
