"""Prompts that reuse what the embedded engine computed for other prompts and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_requests import CPU, LONG, answer, chunks, request, run, token_ids
from held_engine import held, until_idle
from transformers import PreTrainedTokenizerBase
from waits import TIMEOUT_S, until

from vlcore.engines.base import EngineOutput, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import EngineClosedError, EngineError, OptionError
from vlcore.language.model import LanguageModel
from vlcore.prompts.tokenization import Span, TokenizedPrompt

MakeEngine = Callable[..., AbstractContextManager[TransformersEngine]]


@pytest.fixture
def make_engine(language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> MakeEngine:
    @contextmanager
    def make(**options: Any) -> Iterator[TransformersEngine]:
        config = TransformersEngineConfig(**{"max_num_seqs": 6, "max_cached_tokens": 900} | options)
        made = TransformersEngine(
            language_model, tokenizer, device=CPU, dtype=torch.float32, config=config
        )
        try:
            yield made
        finally:
            asyncio.run(made.close())

    return make


@pytest.fixture
def uncached(make_engine: MakeEngine) -> Iterator[TransformersEngine]:
    with make_engine(prefix_caching=False) as made:
        yield made


@pytest.fixture
def engine(make_engine: MakeEngine) -> Iterator[TransformersEngine]:
    with make_engine() as made:
        yield made


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return request(count, seed=seed).prompt.token_ids


def asked(
    ids: Sequence[int], image: tuple[int, torch.Tensor, str | None] | None = None, **options: Any
) -> EngineRequest:
    """Create a request, with an image at a position if there is one, and a key of its content."""
    config = GenerationConfig(**{"max_new_tokens": 6, "ignore_eos": True} | options)
    if image is None:
        return EngineRequest(TokenizedPrompt(tuple(ids)), (), config)
    start, rows, key = image
    all_ids = (*ids[:start], *(0,) * len(rows), *ids[start:])
    prompt = TokenizedPrompt(all_ids, (Span(start, start + len(rows), 0, 0),))
    return EngineRequest(prompt, (rows,), config, row_keys=(key,))


def rows_of(seed: int, count: int = 20) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)) / 8


async def cached_and_tokens(
    engine: TransformersEngine, one: EngineRequest
) -> tuple[int, tuple[int, ...]]:
    outputs = await chunks(engine, one)
    assert len({output.cached_tokens for output in outputs}) == 1
    return outputs[0].cached_tokens, token_ids(outputs)


def num_computed(engine: TransformersEngine) -> list[tuple[int, int]]:
    """Record the shape of every forward over prompts from now on."""
    shapes: list[tuple[int, int]] = []

    def record(module: Any, args: Any, options: dict[str, Any]) -> None:
        if "inputs_embeds" in options:
            shapes.append(tuple(options["inputs_embeds"].shape[:2]))

    engine._model.register_forward_pre_hook(record, with_kwargs=True)
    return shapes


# -- what is reused


def test_the_next_turn_computes_only_what_is_new(
    engine: TransformersEngine, uncached: TransformersEngine
) -> None:
    async def body() -> None:
        first = asked(tokens(30, 1), (12, rows_of(1), "image"))
        cached, answered = await cached_and_tokens(engine, first)
        assert cached == 0
        new = (*answered, *tokens(9, 2))
        turn = replace(
            first,
            prompt=replace(first.prompt, token_ids=(*first.prompt.token_ids, *new)),
        )
        shapes = num_computed(engine)
        num_kept = engine.stats().num_kept_tokens
        cached, answered = await cached_and_tokens(engine, turn)
        # The last token of an answer is sampled, and computed with the next prompt.
        assert cached == len(turn.prompt.token_ids) - 10
        assert shapes == [(1, 10)]
        assert answered == await answer(uncached, turn)
        assert (await cached_and_tokens(uncached, turn))[0] == 0
        stats = engine.stats()
        assert stats.num_cached_tokens == cached
        assert stats.num_prompt_tokens == 50 + len(turn.prompt.token_ids)
        await until(lambda: engine.stats().num_kept_tokens > num_kept)

    run(body)


def test_questions_about_one_image_that_arrive_together_compute_it_once(
    engine: TransformersEngine, uncached: TransformersEngine
) -> None:
    async def body() -> None:
        prefix, rows = tokens(5, 1), rows_of(1, 40)
        all_asked = [
            asked((*prefix, *tokens(7, seed)), (5, rows, "image")) for seed in range(10, 16)
        ]
        shapes = num_computed(engine)
        with held(engine) as hold:
            first = asyncio.create_task(answer(engine, asked(tokens(3, 0), max_new_tokens=1)))
            await asyncio.to_thread(hold.wait_until_held)
            tasks = [asyncio.create_task(cached_and_tokens(engine, one)) for one in all_asked[:5]]
            await until(lambda: engine.stats().num_waiting == 5)
        await first
        results = await asyncio.gather(*tasks)
        assert [cached for cached, _ in results] == [0, 45, 45, 45, 45]
        assert shapes[1] == (1, 52)
        assert sum(count for count, _ in shapes[2:]) == 4
        assert all(length == 7 for _, length in shapes[2:])
        expected = await asyncio.gather(*(answer(uncached, one) for one in all_asked[:5]))
        assert [ids for _, ids in results] == expected

    run(body)


def test_a_prompt_reuses_that_of_a_running_answer(
    engine: TransformersEngine, uncached: TransformersEngine
) -> None:
    async def body() -> None:
        system = tokens(40, 1)
        late = asked((*system, *tokens(8, 3)))
        with held(engine, 3) as hold:
            running = asked((*system, *tokens(8, 2)), max_new_tokens=LONG)
            async with aclosing(engine.generate(running)) as generated:
                await anext(generated)
                await asyncio.to_thread(hold.wait_until_held)
                task = asyncio.create_task(cached_and_tokens(engine, late))
                await until(lambda: engine.stats().num_waiting == 1)
                hold.allow(20)
                cached, answered = await task
        assert cached == 40
        assert answered == await answer(uncached, late)

    run(body)


def test_all_answers_to_one_prompt_reuse_the_same_tokens(
    engine: TransformersEngine, uncached: TransformersEngine
) -> None:
    async def body() -> None:
        several = asked(tokens(30, 1), n=3, do_sample=True, random_seed=4)
        await chunks(engine, several)
        outputs = await chunks(engine, several)
        assert {output.cached_tokens for output in outputs} == {29}

        def by_choice(outputs: Sequence[EngineOutput]) -> list[tuple[int, ...]]:
            return [token_ids([o for o in outputs if o.choice == c]) for c in range(3)]

        assert by_choice(outputs) == by_choice(await chunks(uncached, several))

    run(body)


def test_what_a_cancelled_answer_computed_is_reused(
    engine: TransformersEngine, uncached: TransformersEngine
) -> None:
    async def body() -> None:
        prompt = tokens(20, 1)
        async with aclosing(engine.generate(asked(prompt, max_new_tokens=LONG))) as generated:
            got = token_ids([await anext(generated) for _ in range(4)])
        turn = asked((*prompt, *got, *tokens(6, 2)))
        cached, answered = await cached_and_tokens(engine, turn)
        assert cached >= 20 + 3
        assert answered == await answer(uncached, turn)

    run(body)


def test_short_beginnings_are_not_worth_it(engine: TransformersEngine) -> None:
    async def body() -> None:
        await answer(engine, asked(tokens(40, 1)))
        assert (await cached_and_tokens(engine, asked((*tokens(40, 1)[:7], *tokens(9, 2)))))[0] == 0
        assert (await cached_and_tokens(engine, asked((*tokens(40, 1)[:8], *tokens(9, 3)))))[0] == 8
        long = asked((*tokens(40, 1)[:8], *tokens(200, 4)))
        assert (await cached_and_tokens(engine, long))[0] == 0

    run(body)


# -- what is not


@pytest.mark.parametrize(
    ("key", "other_key"), [("one", "other"), (None, None), ("one", None)], ids=str
)
def test_images_under_the_same_text_are_not_exchanged(
    engine: TransformersEngine,
    uncached: TransformersEngine,
    key: str | None,
    other_key: str | None,
) -> None:
    async def body() -> None:
        one = asked(tokens(24, 1), (12, rows_of(1), key))
        other = asked(tokens(24, 1), (12, rows_of(2), other_key))
        await answer(engine, one)
        cached, answered = await cached_and_tokens(engine, other)
        assert cached == 12
        assert answered == await answer(uncached, other) != await answer(uncached, one)

    run(body)


def test_a_prompt_whose_logits_are_requested_is_computed(engine: TransformersEngine) -> None:
    async def body() -> None:
        await answer(engine, asked(tokens(30, 1)))
        outputs = await chunks(engine, asked(tokens(30, 1), output_logits="all"))
        assert outputs[0].cached_tokens == 0
        assert outputs[0].prompt_logits is not None
        assert outputs[0].prompt_logits.shape == (30, 700)

    run(body)


def test_nothing_that_holds_nan_is_reused(
    engine: TransformersEngine, uncached: TransformersEngine
) -> None:
    async def body() -> None:
        good = asked((*tokens(20, 1), 6, *tokens(5, 2)))
        bad = asked((*tokens(20, 1), 5, *tokens(5, 2)))
        expected = await answer(uncached, good)
        weight: Any = engine._model.get_input_embeddings().weight
        with torch.no_grad():
            weight[5] = torch.nan
            for _ in range(2):
                with pytest.raises(EngineError, match="NaN or infinite"):
                    await answer(engine, bad)
            await until_idle(engine)
            assert engine.stats().num_kept_tokens == 0
            assert await cached_and_tokens(engine, good) == (0, expected)
            weight[5] = 0.01
        assert (await cached_and_tokens(engine, bad))[0] == 20  # of the good prompt

    run(body)


def test_a_slot_that_held_nan_serves_a_prefix(engine: TransformersEngine) -> None:
    async def body() -> None:
        prompt = asked(tokens(20, 1), max_new_tokens=20)
        expected = await answer(engine, prompt)
        weight: Any = engine._model.get_input_embeddings().weight
        with torch.no_grad():
            weight[5] = torch.nan
        for _ in range(2):
            results = await asyncio.gather(
                answer(engine, asked((5,) * 30)),
                cached_and_tokens(engine, prompt),
                return_exceptions=True,
            )
            assert isinstance(results[0], EngineError)
            assert results[1] == (19, expected)

    run(body)


def test_it_can_be_switched_off(uncached: TransformersEngine) -> None:
    async def body() -> None:
        for _ in range(2):
            assert (await cached_and_tokens(uncached, asked(tokens(30, 1))))[0] == 0
        assert uncached.stats().num_kept_tokens == 0

    run(body)
    with pytest.raises(OptionError, match="prefix_caching must be True or False; it is 1"):
        TransformersEngineConfig(prefix_caching=1)  # type: ignore[arg-type]


# -- room


def test_kept_tokens_make_room_for_requests(make_engine: MakeEngine) -> None:
    """The budget is never exceeded, and nothing is kept at the cost of a request."""

    async def body(engine: TransformersEngine) -> None:
        used: list[int] = []

        def record(*_: Any) -> None:
            used.append(engine._batch._cache.num_columns)

        engine._model.register_forward_pre_hook(record)
        for seed in range(8):
            await answer(engine, asked(tokens(30, seed), max_new_tokens=20))
        several = [asked(tokens(35, seed), max_new_tokens=20) for seed in range(20, 24)]
        await asyncio.gather(*(answer(engine, one) for one in several))
        await until_idle(engine)
        assert max(used) <= 220
        assert engine.stats().num_kept_tokens <= 220
        latest = max([(await cached_and_tokens(engine, one))[0] for one in reversed(several)])
        assert latest == 34
        await answer(engine, asked(tokens(100, 30), max_new_tokens=LONG))
        assert max(used) <= 220

    with make_engine(max_cached_tokens=220) as engine:
        run(lambda: body(engine))


def test_the_slots_of_a_burst_are_given_up_for_kept_tokens(make_engine: MakeEngine) -> None:
    async def body(engine: TransformersEngine) -> None:
        burst = [asked(tokens(20, seed), max_new_tokens=30) for seed in range(4)]
        await asyncio.gather(*(answer(engine, one) for one in burst))
        for seed in range(4, 7):
            await answer(engine, asked(tokens(20, seed), max_new_tokens=10))
        again = [asked(tokens(20, seed), max_new_tokens=10) for seed in range(4, 7)]
        assert [(await cached_and_tokens(engine, one))[0] for one in again] == [19] * 3

    with make_engine(max_cached_tokens=200) as engine:
        run(lambda: body(engine))


def record_copies(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many columns every copy within the cache has."""
    lengths: list[int] = []
    copy = engine._batch._cache.copy

    def record(source: int, target: int, length: int) -> None:
        lengths.append(length)
        copy(source, target, length)

    monkeypatch.setattr(engine._batch._cache, "copy", record)
    return lengths


def test_the_next_turn_copies_nothing(
    engine: TransformersEngine, uncached: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        copies = record_copies(engine, monkeypatch)
        answered = await answer(engine, asked(tokens(30, 1)))
        turn = asked((*tokens(30, 1), *answered, *tokens(9, 2)), max_new_tokens=40)
        assert await cached_and_tokens(engine, turn) == (35, await answer(uncached, turn))
        assert copies == []
        other = asked((*tokens(30, 1), *tokens(9, 3)))
        assert await cached_and_tokens(engine, other) == (30, await answer(uncached, other))
        assert copies == [30]

    run(body)


def test_a_prefix_gives_way_where_there_is_no_room_for_both(
    make_engine: MakeEngine, uncached: TransformersEngine
) -> None:
    async def body(engine: TransformersEngine) -> None:
        await answer(engine, asked(tokens(70, 1)))
        other = asked((*tokens(40, 1), *tokens(20, 2)), max_new_tokens=60)
        assert await cached_and_tokens(engine, other) == (0, await answer(uncached, other))

    with make_engine(max_cached_tokens=130) as engine:
        run(lambda: body(engine))


def test_the_end_of_a_prefix_gives_way_to_a_prompt_of_the_same_forward(
    make_engine: MakeEngine, uncached: TransformersEngine
) -> None:
    async def body(engine: TransformersEngine) -> None:
        system, question = tokens(40, 1), tokens(20, 2)
        # While the first columns are taken, the system message is computed behind them. They are
        # free again when the question is, whose columns then do not follow those before it.
        long = asked(tokens(2, 9), max_new_tokens=148)
        async with aclosing(engine.generate(long)) as generated:
            await anext(generated)
            await answer(engine, asked((*system, *tokens(10, 3)), max_new_tokens=4))
        await until_idle(engine)
        await answer(engine, asked((*system, *question), max_new_tokens=4))
        await until_idle(engine)
        # There is room for the first of them where the question is, and for the second one after
        # the system message.
        pair = [
            asked(tokens(10, 5), max_new_tokens=160),
            asked((*system, *question, *tokens(5, 6)), max_new_tokens=4),
        ]
        with engine._waiting._changed:  # the engine's thread takes both at once
            tasks = [asyncio.create_task(cached_and_tokens(engine, one)) for one in pair]
            await until(lambda: engine.stats().num_waiting == 2)
        expected = [await answer(uncached, one) for one in pair]
        assert await asyncio.gather(*tasks) == list(zip([0, 40], expected, strict=True))

    with make_engine(max_cached_tokens=300) as engine:
        run(lambda: body(engine))


def test_sequences_are_moved_together_where_no_free_columns_are_consecutive(
    make_engine: MakeEngine, uncached: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(engine: TransformersEngine) -> None:
        copies = record_copies(engine, monkeypatch)
        lengths = [30, 100, 30, 75]  # the last one waits until the first and the third have ended
        crowd = [asked(tokens(10, n), max_new_tokens=new) for n, new in enumerate(lengths)]
        answers = await asyncio.gather(*(answer(engine, one) for one in crowd))
        assert copies == [110]
        assert answers == [await answer(uncached, one) for one in crowd]

    with make_engine(max_cached_tokens=200, prefix_caching=False) as engine:
        run(lambda: body(engine))


# -- others meanwhile


@pytest.mark.parametrize("is_running", [True, False])
def test_a_request_is_cancelled_while_another_copies_its_prefix(
    engine: TransformersEngine,
    uncached: TransformersEngine,
    monkeypatch: pytest.MonkeyPatch,
    is_running: bool,
) -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        system = tokens(40, 1)
        late = asked((*system, *tokens(8, 3)))
        source = asked((*system, *tokens(8, 2)), max_new_tokens=LONG if is_running else 4)
        with held(engine, 5) as hold:
            task = asyncio.create_task(chunks(engine, source))
            if is_running:
                await asyncio.to_thread(hold.wait_until_held)
            else:
                await task
                hold.allow(100)

            async def cancel() -> None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            copy = engine._batch._cache.copy
            cancelled: list[bool] = []

            def copy_and_cancel(*args: Any) -> None:
                if not cancelled:
                    cancelled.append(True)
                    asyncio.run_coroutine_threadsafe(cancel(), loop).result(TIMEOUT_S)
                copy(*args)

            monkeypatch.setattr(engine._batch._cache, "copy", copy_and_cancel)
            waiting = asyncio.create_task(cached_and_tokens(engine, late))
            if is_running:
                await until(lambda: engine.stats().num_waiting == 1)
                hold.release()
            assert await waiting == (40, await answer(uncached, late))
            assert cancelled

    run(body)


def test_the_engine_is_closed_during_a_copy(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(engine: TransformersEngine) -> None:
        loop = asyncio.get_running_loop()
        prompt = asked(tokens(30, 1), max_new_tokens=LONG)
        await answer(engine, asked((*tokens(30, 1)[:20], *tokens(20, 2))))
        copy = engine._batch._cache.copy
        closing: list[asyncio.Task[None]] = []

        async def close() -> None:
            closing.append(asyncio.create_task(engine.close()))
            await until(lambda: engine._waiting._closed)

        def copy_and_close(*args: Any) -> None:
            asyncio.run_coroutine_threadsafe(close(), loop).result(TIMEOUT_S)
            copy(*args)

        monkeypatch.setattr(engine._batch._cache, "copy", copy_and_close)
        with pytest.raises(EngineClosedError):
            await chunks(engine, prompt)
        await closing[0]

    with make_engine() as engine:
        run(lambda: body(engine))
