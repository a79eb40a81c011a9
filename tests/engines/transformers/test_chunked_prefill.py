"""Long prompts, which the embedded engine computes in chunks between decoding steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
import torch
from engine_requests import CPU, LONG, answer, chunks, request, run, token_ids
from held_engine import held, until_idle
from transformers import PreTrainedTokenizerBase
from waits import until

from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import EngineClosedError, EngineError
from vlcore.language.model import LanguageModel


@pytest.fixture
def make_engine(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Callable[..., TransformersEngine]]:
    made = []

    def make(**options: Any) -> TransformersEngine:
        config = TransformersEngineConfig(**{"max_num_seqs": 6, "max_cached_tokens": 900} | options)
        made.append(
            TransformersEngine(
                language_model, tokenizer, device=CPU, dtype=torch.float32, config=config
            )
        )
        return made[-1]

    yield make
    for engine in made:
        asyncio.run(engine.close())


@pytest.fixture
def engine(make_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """An engine that computes prompts in chunks of 16 tokens, and reuses none."""
    return make_engine(max_prefill_tokens=16, prefix_caching=False)


@pytest.fixture
def whole(make_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    return make_engine(prefix_caching=False)


def watch(engine: TransformersEngine) -> list[tuple[int, int]]:
    """Record the shape [sequences, tokens] of every forward from now on."""
    shapes: list[tuple[int, int]] = []

    def record(module: Any, args: Any, options: dict[str, Any]) -> None:
        shapes.append(tuple(options["position_ids"].shape))

    engine._model.register_forward_pre_hook(record, with_kwargs=True)
    return shapes


def test_running_answers_get_a_token_after_each_chunk(
    engine: TransformersEngine, whole: TransformersEngine
) -> None:
    async def body() -> None:
        long = request(50, seed=1, max_new_tokens=2)
        shapes = watch(engine)
        with held(engine, 2) as hold:
            async with aclosing(engine.generate(request(5, max_new_tokens=LONG))) as running:
                await anext(running)
                await asyncio.to_thread(hold.wait_until_held)
                shapes.clear()
                task = asyncio.create_task(answer(engine, long))
                await until(lambda: engine.stats().num_waiting == 1)
                hold.allow(5)
                await asyncio.to_thread(hold.wait_until_held)
                assert engine.stats().num_waiting == 1  # it is not in the batch yet
                hold.allow(20)
                assert await task == await answer(whole, long)
        # The first shape is of a step that was under way.
        assert shapes[:8] == [*[(1, 16), (1, 1)] * 3, (1, 2), (2, 1)]

    run(body)


def test_short_prompts_are_not_held_up_by_a_long_one(
    engine: TransformersEngine, whole: TransformersEngine
) -> None:
    async def body() -> None:
        finished: list[str] = []

        async def ask(name: str, *sizes: Any, **options: Any) -> tuple[int, ...]:
            answered = await answer(engine, request(*sizes, **options))
            finished.append(name)
            return answered

        shapes = watch(engine)
        with held(engine) as hold:
            long = asyncio.create_task(ask("long", 80, seed=1, max_new_tokens=3))
            await asyncio.to_thread(hold.wait_until_held)
            others = [
                asyncio.create_task(ask("short", 6, seed=seed, max_new_tokens=2))
                for seed in range(2, 5)
            ]
            await until(lambda: engine.stats().num_waiting == 3)
        results = await asyncio.gather(long, *others)
        assert finished == ["short"] * 3 + ["long"]
        # Two short prompts fit into 16 tokens, and every other forward pass is for the long one.
        assert [shape for shape in shapes if shape[1] > 1][:5] == [
            *[(1, 16), (2, 6), (1, 16), (1, 6), (1, 16)]
        ]
        expected = [await answer(whole, request(80, seed=1, max_new_tokens=3))]
        expected += [
            await answer(whole, request(6, seed=seed, max_new_tokens=2)) for seed in range(2, 5)
        ]
        assert list(results) == expected

    run(body)


def test_the_logits_of_a_prompt_are_joined(
    engine: TransformersEngine, whole: TransformersEngine
) -> None:
    async def body() -> None:
        asked = request(50, seed=1, image_rows=9, output_logits="all")
        short = request(5, seed=2, output_logits="all")
        with held(engine) as hold:
            task = asyncio.create_task(chunks(engine, asked))
            await asyncio.to_thread(hold.wait_until_held)
            other = asyncio.create_task(chunks(engine, short))
            await until(lambda: engine.stats().num_waiting == 1)
        for one, own in ((asked, await task), (short, await other)):
            expected = await chunks(whole, one)
            assert token_ids(own) == token_ids(expected)
            logits, expected_logits = own[0].prompt_logits, expected[0].prompt_logits
            assert logits is not None
            assert expected_logits is not None
            assert not logits.is_inference()
            torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-5)

    run(body)


def test_all_answers_share_a_long_prompt(
    engine: TransformersEngine, whole: TransformersEngine
) -> None:
    async def body() -> None:
        asked = request(40, seed=1, n=3, do_sample=True, random_seed=2, max_new_tokens=4)

        async def by_choice(engine: TransformersEngine) -> list[tuple[int, ...]]:
            outputs = await chunks(engine, asked)
            return [token_ids([o for o in outputs if o.choice == choice]) for choice in range(3)]

        assert await by_choice(engine) == await by_choice(whole)

    run(body)


def test_a_request_is_cancelled_between_two_chunks(
    make_engine: Callable[..., TransformersEngine], whole: TransformersEngine
) -> None:
    async def body() -> None:
        engine = make_engine(max_prefill_tokens=16)
        asked = request(60, seed=1)
        shapes = watch(engine)
        with held(engine, 2) as hold:
            task = asyncio.create_task(answer(engine, asked))
            await asyncio.to_thread(hold.wait_until_held)  # at the third chunk
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until_idle(engine)
        assert shapes == [(1, 16)] * 3
        outputs = await chunks(engine, asked)
        assert outputs[0].cached_tokens == 48
        assert shapes[3] == (1, 12)
        assert token_ids(outputs) == await answer(whole, asked)

    run(body)


def test_nan_in_a_chunk_is_neither_reused_nor_left_behind(
    make_engine: Callable[..., TransformersEngine], whole: TransformersEngine
) -> None:
    async def body() -> None:
        engine = make_engine(max_prefill_tokens=16)
        good = request(60, seed=1)
        weight: Any = engine._model.get_input_embeddings().weight
        with torch.no_grad():
            weight[good.prompt.token_ids[3]] = torch.nan
        for num_chunks in (1, 2, 10):  # cancelled twice, and computed to its end
            with held(engine, num_chunks) as hold:
                task = asyncio.create_task(answer(engine, good))
                if num_chunks < 10:
                    await asyncio.to_thread(hold.wait_until_held)
                    task.cancel()
                (result,) = await asyncio.gather(task, return_exceptions=True)
            if num_chunks == 10:
                assert isinstance(result, EngineError)
            await until_idle(engine)
        assert engine.stats().num_kept_tokens == 0
        for layer in engine._batch._cache.key_value_layers:
            assert not layer.keys.isnan().any()
            assert not layer.values.isnan().any()
        other = request(30, seed=2)
        assert await answer(engine, other) == await answer(whole, other)

    run(body)


def test_a_chunk_that_fails_fails_its_own_request(
    engine: TransformersEngine, whole: TransformersEngine
) -> None:
    async def body() -> None:
        def refuse(module: Any, args: Any, options: dict[str, Any]) -> None:
            if options["position_ids"].shape[1] > 1 and options["position_ids"].max() > 40:
                raise MemoryError("no room")

        other = request(9, seed=2, max_new_tokens=20)
        hook = engine._model.register_forward_pre_hook(refuse, with_kwargs=True)
        results = await asyncio.gather(
            answer(engine, request(60, seed=1)), answer(engine, other), return_exceptions=True
        )
        assert "the model failed: MemoryError: no room" in str(results[0])
        assert results[1] == await answer(whole, other)
        hook.remove()
        again = request(60, seed=1)
        assert await answer(engine, again) == await answer(whole, again)

    run(body)


def test_the_engine_is_closed_between_two_chunks(engine: TransformersEngine) -> None:
    async def body() -> None:
        with held(engine, 1) as hold:
            task = asyncio.create_task(answer(engine, request(60, seed=1)))
            await asyncio.to_thread(hold.wait_until_held)
            await engine.close()
        with pytest.raises(EngineClosedError):
            await task

    run(body)


def test_several_long_prompts_follow_each_other(
    engine: TransformersEngine, whole: TransformersEngine
) -> None:
    async def body() -> None:
        asked = [request(40 + seed, seed=seed, max_new_tokens=9) for seed in range(4)]
        answers = await asyncio.gather(*(answer(engine, one) for one in asked))
        assert answers == [await answer(whole, one) for one in asked]

    run(body)
