"""What vLLM computes, compared with the embedded engine, and what it keeps of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from engine_requests import CPU, LONG, answer, chunks, request, run, text, token_ids
from transformers import PreTrainedTokenizerBase
from waits import until

from vlcore.engines.base import Engine, EngineRequest, EngineStats
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.engines.vllm.engine import VllmEngine
from vlcore.errors import EngineError, OptionError, PluginContractError
from vlcore.language.model import LanguageModel
from vlcore.prompts.tokenization import Span, TokenizedPrompt

BLOCK = 128
"""Number of tokens in a block of vLLM's cache on a CPU."""


@pytest.fixture(scope="module")
def embedded(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TransformersEngine]:
    made = TransformersEngine(language_model, tokenizer, device=CPU, dtype=torch.float32)
    yield made
    asyncio.run(made.close())


async def has_work(engine: VllmEngine) -> bool:
    """Ask vLLM's engine process whether it has a request."""
    work: bool = await engine._loop.wait(engine._llm.engine_core.call_utility_async("has_work"))
    return work


async def until_idle(engine: VllmEngine) -> None:
    await until(lambda: not engine._requests)
    while await has_work(engine):
        pass
    assert not engine._llm.output_processor.has_unfinished_requests()


# -- what it computes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.7},
        {"frequency_penalty": 1.5, "presence_penalty": -0.5},
        {"logit_bias": {400: 3.0, 401: -100}},
        {"bad_words": ["a", "e", "o"]},
        {"bad_token_ids": list(range(300, 600))},
        {"min_new_tokens": 12, "stop_token_ids": list(range(300, 690))},
    ],
    ids=lambda options: ", ".join(options) or "greedy",
)
def test_greedy_answers_are_those_of_the_embedded_engine(
    engine: VllmEngine, embedded: TransformersEngine, options: dict[str, Any]
) -> None:
    async def body() -> None:
        for seed, image_rows in enumerate((0, 5, 150)):
            asked = request(9, seed=seed, image_rows=image_rows, max_new_tokens=20, **options)
            ours, theirs = await chunks(engine, asked), await chunks(embedded, asked)
            assert token_ids(ours) == token_ids(theirs)
            assert text(ours) == text(theirs)

    run(body)


def test_logprobs_are_those_of_the_embedded_engine(
    engine: VllmEngine, embedded: TransformersEngine
) -> None:
    async def body() -> None:
        for image_rows in (0, 150):
            asked = request(9, image_rows=image_rows, logprobs=3, repetition_penalty=1.5)
            ours, theirs = await chunks(engine, asked), await chunks(embedded, asked)
            for mine, other in zip(ours, theirs, strict=True):
                assert [list(one) for one in mine.logprobs] == [list(one) for one in other.logprobs]
                for values, expected in zip(mine.logprobs, other.logprobs, strict=True):
                    assert list(values.values()) == pytest.approx(list(expected.values()), abs=2e-3)

    run(body)


def test_a_low_temperature_is_accepted(engine: VllmEngine) -> None:
    async def body() -> None:
        greedy = await answer(engine, request(5))
        assert await answer(engine, request(5, do_sample=True, temperature=1e-4)) == greedy

    run(body)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_every_seed_reproduces_an_answer(engine: VllmEngine, seed: int) -> None:
    async def body() -> None:
        asked = request(5, do_sample=True, temperature=2.0, random_seed=seed)
        assert await answer(engine, asked) == await answer(engine, asked)

    run(body)


# -- what it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_logits": "generation"}, "vLLM does not return logits"),
        ({"bad_words": ["x"], "frequency_penalty": 1}, "bad_words cannot be combined"),
    ],
)
def test_what_vllm_cannot_do_is_refused_by_name(
    engine: VllmEngine, options: dict[str, Any], message: str
) -> None:
    async def body() -> None:
        with pytest.raises(OptionError, match=message):
            await chunks(engine, request(4, **options))

    run(body)


def test_image_embeddings_that_are_not_finite_are_refused(engine: VllmEngine) -> None:
    async def body() -> None:
        asked = request(4, image_rows=3)
        asked.rows[0][1, 2] = torch.nan
        with pytest.raises(PluginContractError, match="embeddings of image 0 hold NaN"):
            await chunks(engine, asked)

    run(body)


def test_banned_strings_that_exclude_everything_fail_their_request_only(
    engine: VllmEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    async def body() -> None:
        every = {character for i in range(700) for character in tokenizer.decode([i])}
        asked = request(5, bad_words=sorted({*every, " "}), skip_special_tokens=False)
        results = await asyncio.gather(
            answer(engine, asked), answer(engine, request(4)), return_exceptions=True
        )
        assert isinstance(results[0], EngineError)
        assert "bad_words exclude all of the" in str(results[0])
        assert isinstance(results[1], tuple)
        await until_idle(engine)

    run(body)


# -- the prefix cache


def shared_text(*images: torch.Tensor, seed: int = 0) -> EngineRequest:
    """Create a request whose text is the same, whatever its images are."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(300, 690, (BLOCK + 40,), generator=draw).tolist()
    ids[10:50], ids[BLOCK - 5 : BLOCK + 20] = [0] * 40, [0] * 25
    spans = (Span(10, 50, 0, 0), Span(BLOCK - 5, BLOCK + 20, 1, 0))
    config = GenerationConfig(max_new_tokens=8, ignore_eos=True, logprobs=0)
    return EngineRequest(TokenizedPrompt(tuple(ids), spans), images, config)


async def num_cached_tokens(engine: VllmEngine, asked: EngineRequest) -> int:
    """Send a prompt as the engine does, and return how many of its tokens vLLM has cached."""
    from vllm import SamplingParams

    from vlcore.engines.external.prompt import to_host_prompt
    from vlcore.engines.vllm.requests import _as_input

    prompt = _as_input(to_host_prompt(asked, torch.float32), [])

    async def ask() -> int:
        options = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
        async for output in engine._llm.generate(prompt, options, "cached"):
            return int(output.num_cached_tokens)
        raise AssertionError("vLLM returned nothing")

    return await engine._loop.wait(ask())


async def scores(engine: Engine, asked: EngineRequest) -> torch.Tensor:
    """Return the log-probabilities of all tokens after a prompt."""
    config = replace(asked.config, max_new_tokens=1, logprobs=700)
    (only,) = await chunks(engine, replace(asked, config=config))
    return torch.tensor([only.logprobs[0][token_id] for token_id in range(700)])


async def check_scores(
    engine: VllmEngine, embedded: TransformersEngine, asked: list[EngineRequest]
) -> None:
    """Check that prompts of one length differ, and that vLLM computes them as the other engine."""
    expected = [await scores(embedded, one) for one in asked]
    for one, other in combinations(expected, 2):
        assert (one - other).abs().max() > 0.05
    for order in (list(range(len(asked))), list(reversed(range(len(asked))))):
        for index in order:
            got = await scores(engine, asked[index])
            torch.testing.assert_close(got, expected[index], atol=2e-3, rtol=0)
    together = await asyncio.gather(*(scores(engine, one) for one in asked))
    for got, wanted in zip(together, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-3, rtol=0)


def test_two_images_under_one_text_share_no_blocks(
    engine: VllmEngine, embedded: TransformersEngine
) -> None:
    async def body() -> None:
        draw = torch.Generator().manual_seed(1)
        cat, dog = (torch.randn(40, 64, generator=draw) for _ in range(2))
        second = torch.randn(25, 64, generator=draw)
        asked = [shared_text(cat, second), shared_text(dog, second), shared_text(cat, -second)]
        await check_scores(engine, embedded, asked)

    run(body)


def test_blocks_of_the_same_image_are_found_again(engine: VllmEngine) -> None:
    async def body() -> None:
        draw = torch.Generator().manual_seed(2)
        first, second = (torch.randn(n, 64, generator=draw) for n in (40, 25))
        asked = shared_text(first, second, seed=3)
        assert await num_cached_tokens(engine, asked) == 0
        assert await num_cached_tokens(engine, asked) == BLOCK
        other_image = first.clone()
        other_image[-1, -1] += 0.25
        assert await num_cached_tokens(engine, shared_text(other_image, second, seed=3)) == 0
        # The second image ends in a later block, so it does not matter to the first one's.
        later = second.clone()
        later[10] += 1
        assert await num_cached_tokens(engine, shared_text(first, later, seed=3)) == BLOCK

    run(body)


def test_an_image_embedding_of_zeros_is_not_token_0(
    engine: VllmEngine, embedded: TransformersEngine
) -> None:
    async def body() -> None:
        zeros = shared_text(torch.zeros(40, 64), torch.zeros(25, 64), seed=4)
        ids = list(zeros.prompt.token_ids)
        tokens = replace(zeros, prompt=TokenizedPrompt(tuple(ids)), rows=())
        mixed_spans = (zeros.prompt.spans[1],)
        mixed = replace(
            zeros,
            prompt=TokenizedPrompt(tuple(ids), (replace(mixed_spans[0], image=0),)),
            rows=(torch.zeros(25, 64),),
        )
        await check_scores(engine, embedded, [zeros, tokens, mixed])

    run(body)


# -- cancelling


@pytest.mark.parametrize("num_chunks", [0, 1, 3])
def test_a_cancelled_request_leaves_vllm(engine: VllmEngine, num_chunks: int) -> None:
    async def body() -> None:
        asked = request(9, image_rows=4, n=2, max_new_tokens=LONG, do_sample=True)
        async with aclosing(engine.generate(asked)) as generated:
            if num_chunks:
                for _ in range(num_chunks):
                    await anext(generated)
                assert await has_work(engine)
                assert sum((engine.stats().num_running, engine.stats().num_waiting)) == 2
            else:
                first = asyncio.create_task(anext(generated))
                await until(lambda: engine._requests)
                first.cancel()
                await asyncio.wait([first])
        await until_idle(engine)
        assert engine.stats() == EngineStats(0, 0)

    run(body)


def test_a_stop_string_ends_the_request_in_vllm(engine: VllmEngine) -> None:
    async def body() -> None:
        word = text(await chunks(engine, request(5, max_new_tokens=16)))[6:9]
        outputs = await chunks(engine, request(5, max_new_tokens=LONG, stop_words=[word]))
        assert outputs[-1].finish_reason == "stop"
        await until_idle(engine)

    run(body)


def test_many_requests_of_which_a_third_is_cancelled_leave_nothing(engine: VllmEngine) -> None:
    async def body() -> None:
        draw = torch.Generator().manual_seed(0)

        async def ask(number: int) -> None:
            asked = request(5, seed=number % 7, image_rows=number % 3, max_new_tokens=6)
            limit = int(torch.randint(0, 4, (), generator=draw)) if number % 3 == 0 else None
            async with aclosing(engine.generate(asked)) as generated:
                if limit == 0:
                    return
                async for count, _ in enumerate_async(generated):
                    if count == limit:
                        return

        await asyncio.gather(*(ask(number) for number in range(100)))
        await until_idle(engine)
        assert engine.stats() == EngineStats(0, 0)

    run(body)


async def enumerate_async(generated: Any) -> Any:
    count = 0
    async for item in generated:
        count += 1
        yield count, item
