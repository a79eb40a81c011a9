"""Requests that join and leave the embedded engine's running batch, in any company."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from crowds import crowd, keep_company
from engine_requests import CPU, LONG, answer, chunks, request, run, token_ids, watch_batches
from held_engine import held, until_idle
from transformers import PreTrainedTokenizerBase
from waits import TIMEOUT_S, until

from vlcore.engines.base import EngineRequest
from vlcore.engines.detokenizer import Detokenizer
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import ContextLengthError, EngineError, OptionError
from vlcore.language.model import LanguageModel
from vlcore.prompts.tokenization import TokenizedPrompt

BF16_GAP = 0.05
"""In bfloat16, answers may differ where the two most likely tokens are closer. The model's
logits are about 1, of which a bfloat16 keeps 8 bits, and a sum of rounded terms fewer."""


@pytest.fixture
def small(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TransformersEngine]:
    """An engine with room for three sequences of 40 tokens."""
    config = TransformersEngineConfig(max_num_seqs=8, max_cached_tokens=120, max_prefill_tokens=64)
    made = TransformersEngine(
        language_model, tokenizer, device=CPU, dtype=torch.float32, config=config
    )
    yield made
    asyncio.run(made.close())


def watch_shapes(engine: TransformersEngine) -> list[tuple[int, int]]:
    """Record the shape [sequences, tokens] of every forward from now on."""
    shapes: list[tuple[int, int]] = []

    def record(module: Any, args: Any, options: dict[str, Any]) -> None:
        shapes.append(tuple(options["position_ids"].shape))

    engine._model.register_forward_pre_hook(record, with_kwargs=True)
    return shapes


async def prompts_of(engine: TransformersEngine, lengths: list[int]) -> list[tuple[int, int]]:
    """Let prompts of these lengths wait together; shapes of the forwards that compute them."""
    shapes = watch_shapes(engine)
    with held(engine) as hold:
        holding = asyncio.create_task(answer(engine, request(1, max_new_tokens=1)))
        await asyncio.to_thread(hold.wait_until_held)
        asked = [request(n, seed=1000 * n + i, max_new_tokens=2) for i, n in enumerate(lengths)]
        tasks = [asyncio.create_task(answer(engine, one)) for one in asked]
        await until(lambda: engine.stats().num_waiting == len(lengths))
    await asyncio.gather(holding, *tasks)
    return [shape for shape in shapes[1:] if shape[1] > 1]


# -- joining


def test_a_request_joins_a_running_batch_between_two_steps(engine: TransformersEngine) -> None:
    async def body() -> None:
        shapes = watch_shapes(engine)
        with held(engine, 3) as hold:
            async with aclosing(engine.generate(request(5, max_new_tokens=LONG))) as first:
                await anext(first)
                await asyncio.to_thread(hold.wait_until_held)
                assert shapes == [(1, 5), (1, 1), (1, 1), (1, 1)]
                second = asyncio.create_task(answer(engine, request(9, seed=1, max_new_tokens=2)))
                await until(lambda: engine.stats().num_waiting == 1)
                hold.allow(3)
                await second
                assert shapes[4:6] == [(1, 9), (2, 1)]

    run(body)


def test_a_new_request_waits_for_at_most_one_step(
    engine: TransformersEngine,
) -> None:
    async def body() -> None:
        shapes = watch_shapes(engine)
        with held(engine) as hold:
            others = [
                asyncio.create_task(chunks(engine, request(4, seed=i, max_new_tokens=LONG)))
                for i in range(7)
            ]
            await asyncio.to_thread(hold.wait_until_held)
            while shapes[-1] != (7, 1):
                hold.allow(1)
                await asyncio.to_thread(hold.wait_until_held)
            for seed in range(10, 15):
                shapes.clear()  # a step of the others is under way
                late = asyncio.create_task(answer(engine, request(6, seed=seed, max_new_tokens=2)))
                await until(lambda: engine.stats().num_waiting == 1)
                hold.allow(3)
                await late
                await asyncio.to_thread(hold.wait_until_held)
                assert shapes == [(1, 6), (8, 1), (7, 1)]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    run(body)


def test_prompts_that_wait_are_computed_together(small: TransformersEngine) -> None:
    async def body() -> None:
        shapes = await prompts_of(small, [20, 21, 20, 20])  # three of them padded to 63 tokens
        assert shapes == [(3, 21), (1, 20)]

    run(body)


def test_a_padded_batch_of_prompts_is_no_larger_than_allowed(small: TransformersEngine) -> None:
    async def body() -> None:
        assert await prompts_of(small, [3, 33, 4]) == [(1, 3), (1, 33), (1, 4)]
        assert await prompts_of(small, [3, 32, 4]) == [(2, 32), (1, 4)]
        assert await prompts_of(small, [100]) == [(1, 64), (1, 36)]

    run(body)


# -- waiting


def test_requests_that_do_not_fit_wait_in_order(small: TransformersEngine) -> None:
    async def body() -> None:
        finished: list[str] = []

        async def ask(name: str, num_tokens: int, max_new_tokens: int) -> None:
            await answer(small, request(num_tokens, max_new_tokens=max_new_tokens))
            finished.append(name)

        async with asyncio.TaskGroup() as group:
            # There is room for the first and the third; the second waits, and is not overtaken.
            for asked in (("first", 10, 50), ("larger", 20, 90), ("small", 2, 20)):
                group.create_task(ask(*asked))
                await asyncio.sleep(0)
        assert finished == ["first", "larger", "small"]

    run(body)


def test_the_cache_never_outgrows_its_budget(small: TransformersEngine) -> None:
    async def body() -> None:
        rng = random.Random(0)
        sizes: list[tuple[int, int]] = []

        def record(module: Any, args: Any, options: dict[str, Any], result: Any) -> None:
            keys = options["past_key_values"].layers[0].keys
            sizes.append((keys.shape[0], keys.shape[2]))

        small._model.register_forward_hook(record, with_kwargs=True)
        asked = [
            request(rng.randrange(1, 30), seed=i, max_new_tokens=rng.randrange(1, 60))
            for i in range(24)
        ]
        with held(small):
            tasks = [asyncio.create_task(answer(small, one)) for one in asked]
            await asyncio.sleep(0)  # each has joined the queue
        answers = await asyncio.gather(*tasks)
        assert [len(one) for one in answers] == [one.config.max_new_tokens for one in asked]
        assert max(slots * length for slots, length in sizes) <= 120
        assert max(slots for slots, _ in sizes) > 2

    run(body)


def test_a_prompt_that_can_never_fit_is_refused_at_once(small: TransformersEngine) -> None:
    async def body() -> None:
        assert small.context_length == 120
        async with aclosing(small.generate(request(2, max_new_tokens=LONG))) as running:
            await anext(running)
            with pytest.raises(ContextLengthError, match=r"context length is 120"):
                await chunks(small, request(120))
            with pytest.raises(
                OptionError, match=r"n=3 answers of up to 60 .*caches up to 120 tokens"
            ):
                await chunks(small, request(10, n=3, do_sample=True, max_new_tokens=50))
            with pytest.raises(OptionError, match=r"n=9 answers of up to 4 .*runs up to 8 answers"):
                await chunks(small, request(2, n=9, do_sample=True, max_new_tokens=2))
        outputs = await chunks(small, request(100, max_new_tokens=LONG))
        assert (len(token_ids(outputs)), outputs[-1].finish_reason) == (20, "length")

    run(body)


def test_an_engine_without_memory_for_its_cache_is_an_error(
    language_model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlcore.engines.transformers.engine.free_bytes", lambda device: 1000)
    with pytest.raises(EngineError, match=r"no memory is left on cpu .*bytes per token"):
        TransformersEngine(language_model, tokenizer, device=CPU, dtype=torch.float32)


def test_little_memory_shortens_the_context_and_warns(
    language_model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    probe = TransformersEngine(language_model, tokenizer, device=CPU, dtype=torch.float32)
    bytes_per_token = probe._batch._cache.bytes_per_token
    asyncio.run(probe.close())
    free = 2 * 100 * bytes_per_token
    monkeypatch.setattr("vlcore.engines.transformers.engine.free_bytes", lambda device: free)
    engine = TransformersEngine(language_model, tokenizer, device=CPU, dtype=torch.float32)
    assert engine.context_length == 100
    assert "is 512 tokens; there is memory for the keys and values of 100" in caplog.text
    asyncio.run(engine.close())


# -- leaving


@pytest.mark.parametrize("num_chunks", [0, 1, 3])
def test_a_cancelled_request_frees_its_resources(
    small: TransformersEngine, num_chunks: int
) -> None:
    async def body() -> None:
        expected = await answer(small, request(7, seed=3))
        task: asyncio.Task[Any]

        async def ask(seen: asyncio.Event) -> None:
            async with aclosing(small.generate(request(5, max_new_tokens=LONG))) as generated:
                for _ in range(num_chunks):
                    await anext(generated)
                seen.set()
                async for _ in generated:
                    pass

        seen = asyncio.Event()
        with held(small, 4):
            task = asyncio.create_task(ask(seen))
            await seen.wait()
            task.cancel()
        assert await answer(small, request(7, seed=3)) == expected
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(small)

    run(body)


def test_a_request_cancelled_while_it_waits_leaves_the_queue(small: TransformersEngine) -> None:
    async def body() -> None:
        with held(small, 4):
            async with aclosing(small.generate(request(10, max_new_tokens=100))) as running:
                await anext(running)
                waiting = asyncio.create_task(answer(small, request(20, max_new_tokens=90)))
                await until(lambda: small._waiting)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert not small._waiting
        await until_idle(small)

    run(body)


def test_a_request_cancelled_during_its_prefill_is_not_decoded(small: TransformersEngine) -> None:
    async def body() -> None:
        sizes = watch_batches(small)
        loop = asyncio.get_running_loop()
        task: asyncio.Task[Any] = asyncio.create_task(answer(small, request(5, max_new_tokens=9)))

        def cancel(*_: Any) -> None:
            cancelled = asyncio.run_coroutine_threadsafe(stop(), loop)
            cancelled.result(TIMEOUT_S)

        async def stop() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        hook = small._model.register_forward_pre_hook(cancel)
        await asyncio.gather(task, return_exceptions=True)
        await until_idle(small)
        hook.remove()
        assert sizes == [1]

    run(body)


def test_a_request_cancelled_while_a_token_is_added_stays_cancelled(
    small: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    adds, cancelled = threading.Event(), threading.Event()
    add = Detokenizer.add

    def wait(self: Detokenizer, token_id: int) -> str:
        adds.set()
        assert cancelled.wait(TIMEOUT_S)
        return add(self, token_id)

    async def body() -> None:
        sizes = watch_batches(small)
        monkeypatch.setattr(Detokenizer, "add", wait)
        task = asyncio.create_task(answer(small, request(5, max_new_tokens=100)))
        await until(adds.is_set)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        cancelled.set()
        await until_idle(small)
        assert sizes == [1]

    run(body)


def test_a_consumer_that_stops_reading_does_not_delay_others(small: TransformersEngine) -> None:
    async def body() -> None:
        expected = await answer(small, request(7, seed=3))
        async with aclosing(small.generate(request(5, max_new_tokens=20))) as unread:
            await anext(unread)
            assert await answer(small, request(7, seed=3)) == expected
            await until_idle(small)
            assert len([chunk async for chunk in unread]) == 19

    run(body)


def test_nan_in_a_slot_does_not_affect_its_next_sequence(
    small: TransformersEngine,
) -> None:
    async def body() -> None:
        asked = [request(n, seed=n, max_new_tokens=20) for n in (3, 6, 2)]
        expected = [await answer(small, one) for one in asked]
        weight: Any = small._model.get_input_embeddings().weight
        with torch.no_grad():
            weight[5] = torch.nan
        poisoned = EngineRequest(TokenizedPrompt((300,) * 9 + (5,)), (), request(1).config)
        for _ in range(3):
            results = await asyncio.gather(
                answer(small, poisoned),
                *(answer(small, one) for one in asked),
                return_exceptions=True,
            )
            assert isinstance(results[0], EngineError)
            assert results[1:] == expected

    run(body)


def test_a_prompt_that_fails_fails_alone(engine: TransformersEngine) -> None:
    async def body() -> None:
        asked = [request(n, seed=n) for n in (3, 4, 5)]
        expected = [await answer(engine, one) for one in asked]

        def refuse(module: Any, args: Any, options: dict[str, Any]) -> None:
            if options["position_ids"].shape[1] >= 7:
                raise MemoryError("no room")

        engine._model.register_forward_pre_hook(refuse, with_kwargs=True)
        results = await asyncio.gather(
            *(answer(engine, one) for one in [*asked, request(7)]), return_exceptions=True
        )
        assert results[:3] == expected
        assert isinstance(results[3], EngineError)
        assert "the model failed: MemoryError: no room" in str(results[3])

    run(body)


def test_a_cache_that_cannot_grow_fails_the_new_request(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        asked, large = request(4, max_new_tokens=30), request(200, max_new_tokens=250)
        expected = await answer(engine, asked)
        layer = engine._batch._cache._layers[1]

        def refuse(num_columns: int) -> None:
            raise MemoryError(f"no room for {num_columns} columns")

        with monkeypatch.context() as patch, held(engine, 4) as hold:
            first = asyncio.create_task(answer(engine, asked))
            await asyncio.to_thread(hold.wait_until_held)
            patch.setattr(layer, "reserve", refuse)
            second = asyncio.create_task(answer(engine, large))
            await until(lambda: engine.stats().num_waiting == 1)
            hold.release()
            with pytest.raises(EngineError, match="the model failed: MemoryError: no room"):
                await second
            assert await first == expected
        assert len(await answer(engine, large)) > 1
        assert await answer(engine, asked) == expected

    run(body)


def test_a_failure_in_a_step_ends_its_requests_only(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        expected = await answer(engine, request(4))

        def refuse(*_: Any) -> torch.Tensor:
            raise RuntimeError("the device is gone")

        with monkeypatch.context() as patch:
            patch.setattr("vlcore.engines.transformers.engine.choose_tokens", refuse)
            for _ in range(2):
                with pytest.raises(EngineError, match="RuntimeError: the device is gone"):
                    await answer(engine, request(4))
        assert await answer(engine, request(4)) == expected

    run(body)


# -- company


def draw_request(number: int, rng: random.Random) -> EngineRequest:
    """Draw a request of any kind, half of which begin like others or have the same image."""
    options: dict[str, Any] = {"max_new_tokens": rng.randrange(1, 20)}
    if number % 3 == 1:
        options |= {"do_sample": True, "random_seed": number, "temperature": 1.5}
    if number % 5 == 2:
        options |= {"repetition_penalty": 1.3}
    if number % 2:
        return request(
            rng.randrange(1, 40), seed=number, image_rows=rng.choice([0, 0, 2, 9]), **options
        )
    image = rng.choice([0, 1, 2])
    stem = request(20, seed=1000 + rng.choice([0, 1]), image_rows=9 * image, **options)
    own = request(rng.randrange(1, 20), seed=number).prompt.token_ids
    prompt = replace(stem.prompt, token_ids=(*stem.prompt.token_ids[: 10 + 9 * image], *own))
    if not image:
        return replace(stem, prompt=prompt)
    key = str(stem.rows[0].tolist())
    return replace(stem, prompt=prompt, row_keys=(rng.choice([key, key, None]),))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_answers_do_not_depend_on_the_batch(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    """Nor on what is reused: each answer alone is computed from its whole prompt at once."""

    def make(**options: Any) -> TransformersEngine:
        config = TransformersEngineConfig(max_num_seqs=6, max_cached_tokens=400, **options)
        return TransformersEngine(
            language_model, tokenizer, device=CPU, dtype=torch.float32, config=config
        )

    async def body() -> None:
        arrivals = crowd(32, seed, draw_request)
        uncached = make(prefix_caching=False)
        alone = [await answer(uncached, arrival.request) for arrival in arrivals]
        await uncached.close()
        for is_caching in (True, False):
            engine = make(max_prefill_tokens=25, prefix_caching=is_caching)
            sizes = watch_batches(engine)
            together = await keep_company(engine, arrivals)
            assert max(sizes) > 3
            for arrival, expected, got in zip(arrivals, alone, together, strict=True):
                assert got == expected[: arrival.num_chunks]
            assert (engine.stats().num_cached_tokens > 100) == is_caching
            await until_idle(engine)
            await engine.close()

    run(body)


def test_in_bfloat16_answers_differ_only_between_nearly_equal_tokens(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = TransformersEngine(language_model, tokenizer, device=CPU, dtype=torch.bfloat16)

    async def body() -> None:
        asked = [
            request(length, seed=length, max_new_tokens=24, output_logits="generation")
            for length in range(3, 35, 2)
        ]
        alone = [await chunks(engine, one) for one in asked]
        together = await asyncio.gather(*(chunks(engine, one) for one in asked))
        for before, after in zip(alone, together, strict=True):
            for one, other in zip(before, after, strict=True):
                if one.token_ids != other.token_ids:
                    assert one.logits is not None
                    first, second = one.logits[0].topk(2).values.tolist()
                    assert first - second < BF16_GAP
                    break
        await engine.close()

    run(body)
