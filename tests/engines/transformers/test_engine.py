from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_requests import CPU, LONG, answer, chunks, request, run, text, token_ids, watch_batches
from held_engine import held
from transformers import PreTrainedTokenizerBase
from waits import until

from vlcore.engines.base import EngineRequest, EngineStats
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import ContextLengthError, EngineClosedError, EngineError, OptionError
from vlcore.language.model import LanguageModel
from vlcore.prompts.tokenization import TokenizedPrompt

# -- what it computes


@pytest.mark.parametrize("image_rows", [0, 5])
def test_greedy_answers_are_those_of_transformers(
    engine: TransformersEngine, image_rows: int
) -> None:
    asked = request(7, image_rows=image_rows, max_new_tokens=12)
    with torch.inference_mode():
        embeddings = engine._model.get_input_embeddings()(torch.tensor([asked.prompt.token_ids]))
        for span in asked.prompt.spans:
            stop = span.first_row + span.stop - span.start
            embeddings[0, span.start : span.stop] = asked.rows[0][span.first_row : stop]
        expected = engine._model.generate(  # type: ignore[operator]
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )

    async def body() -> None:
        assert await answer(engine, asked) == tuple(expected[0].tolist())

    run(body)


def test_max_num_seqs_bounds_a_batch(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = TransformersEngine(
        language_model,
        tokenizer,
        device=CPU,
        dtype=torch.float32,
        config=TransformersEngineConfig(max_num_seqs=2),
    )

    async def body() -> None:
        sizes = watch_batches(engine)
        answers = await asyncio.gather(*(answer(engine, request(3, seed=i)) for i in range(5)))
        assert [len(one) for one in answers] == [8] * 5
        assert max(sizes) == 2
        await engine.close()

    run(body)


@pytest.mark.parametrize(
    "setting", ["max_num_seqs", "session_len", "max_cached_tokens", "max_prefill_tokens"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True])
def test_a_setting_out_of_range_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{setting} must be an integer of at least .; it is"):
        TransformersEngineConfig(**{setting: value})


def test_weights_are_converted_on_request(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase, engine: TransformersEngine
) -> None:
    config = TransformersEngineConfig(weights="int8")
    converted = TransformersEngine(
        language_model, tokenizer, device=CPU, dtype=torch.float32, config=config
    )

    async def body() -> None:
        asked = request(5, output_logits="all", max_new_tokens=1)
        (exact,), (rounded,) = await chunks(engine, asked), await chunks(converted, asked)
        assert exact.prompt_logits is not None
        assert rounded.prompt_logits is not None
        difference = (exact.prompt_logits - rounded.prompt_logits).abs()
        assert 0 < difference.mean() < 0.05 * exact.prompt_logits.std()
        await converted.close()

    run(body)


@pytest.mark.parametrize("weights", ["int2", "", 8])
def test_unknown_formats_of_weights_are_refused(weights: Any) -> None:
    with pytest.raises(OptionError, match="weights must be 'int8', 'int4' or None; it is"):
        TransformersEngineConfig(weights=weights)


def test_packing_is_true_or_false() -> None:
    value: Any = "yes"
    with pytest.raises(OptionError, match="pack_weights must be True or False; it is 'yes'"):
        TransformersEngineConfig(pack_weights=value)


# -- how answers end


def test_the_end_of_the_context_ends_an_answer(
    language_model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(language_model, "context_limit_reason", "the test sets it")
    engine = TransformersEngine(
        language_model,
        tokenizer,
        device=CPU,
        dtype=torch.float32,
        config=TransformersEngineConfig(session_len=12),
    )

    async def body() -> None:
        assert engine.context_length == 12
        assert engine.context_limit_reason == ""  # it is the session's length, not the model's
        outputs = await chunks(engine, request(9, max_new_tokens=50))
        assert len(token_ids(outputs)) == 3
        assert outputs[-1].finish_reason == "length"
        with pytest.raises(ContextLengthError, match="has 12 tokens"):
            await chunks(engine, request(12))
        await engine.close()

    run(body)


def test_a_session_is_never_longer_than_the_context(
    language_model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(language_model, "context_limit_reason", "the test sets it")
    config = TransformersEngineConfig(session_len=100_000)
    engine = TransformersEngine(
        language_model, tokenizer, device=CPU, dtype=torch.float32, config=config
    )
    assert engine.context_length == language_model.context_length == 512
    assert engine.context_limit_reason == "the test sets it"
    asyncio.run(engine.close())


def test_ignore_eos_ignores_all_ends_except_those_of_the_request(
    engine: TransformersEngine,
) -> None:
    async def body() -> None:
        whole = await chunks(engine, request(5, max_new_tokens=12))
        index = next(i for i in range(3, 12) if token_ids(whole)[i] not in token_ids(whole)[:i])
        engine._stop_conditions = replace(
            engine._stop_conditions, eos_token_ids=frozenset({token_ids(whole)[index]})
        )
        ends = await chunks(engine, request(5, max_new_tokens=12, ignore_eos=False))
        assert token_ids(ends) == token_ids(whole)[:index]
        assert ends[-1].finish_reason == "stop"
        goes_on = await chunks(engine, request(5, max_new_tokens=12, ignore_eos=True))
        assert token_ids(goes_on) == token_ids(whole)
        word = text(whole)[2:4]
        asked = request(5, max_new_tokens=12, ignore_eos=True, stop=(word,))
        assert token_ids(await chunks(engine, asked)) == token_ids(whole)

    run(body)


def test_a_templates_stop_string_that_is_a_token_ends_the_answer_by_its_id(
    engine: TransformersEngine, tokenizer: PreTrainedTokenizerBase
) -> None:
    async def body() -> None:
        engine._stop_conditions = replace(engine._stop_conditions, eos_token_ids=frozenset())
        model: Any = engine._model
        end = tokenizer.convert_tokens_to_ids("</s>")
        likely = torch.zeros(700)
        likely[end] = 1e6  # the end token wins at every step
        model.get_output_embeddings().register_forward_hook(lambda *call: call[2] + likely)
        outputs = await chunks(engine, request(4, stop=("</s>",)))
        assert (token_ids(outputs), text(outputs)) == ((), "")
        assert outputs[-1].finish_reason == "stop"

    run(body)


# -- cancelling


def test_closing_the_iterator_frees_the_engine(engine: TransformersEngine) -> None:
    async def body() -> None:
        sizes = watch_batches(engine)
        expected = await answer(engine, request(4))
        sizes.clear()
        with held(engine, 4) as hold:
            async with aclosing(engine.generate(request(4, max_new_tokens=LONG))) as generated:
                await anext(generated)
                await asyncio.to_thread(hold.wait_until_held)
        assert await answer(engine, request(4)) == expected
        assert len(sizes) == 5 + len(expected)

    run(body)


def test_a_cancelled_request_does_not_affect_its_batch(engine: TransformersEngine) -> None:
    async def body() -> None:
        asked = [request(4, seed=i, max_new_tokens=40) for i in range(3)]
        expected = [await answer(engine, one) for one in asked]
        with held(engine, 10) as hold:
            tasks = [asyncio.create_task(answer(engine, one)) for one in asked]
            await asyncio.to_thread(hold.wait_until_held)
            tasks[1].cancel()
            await asyncio.wait([tasks[1]])
        assert await tasks[0] == expected[0]
        assert await tasks[2] == expected[2]
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]

    run(body)


# -- failures


def test_nan_logits_fail_the_request_only(engine: TransformersEngine) -> None:
    async def body() -> None:
        expected = await answer(engine, request(4))
        weight: Any = engine._model.get_input_embeddings().weight
        kept = weight[5].clone()
        with torch.no_grad():
            weight[5] = torch.nan
        poisoned = EngineRequest(
            TokenizedPrompt((5, 300, 301)), (), GenerationConfig(max_new_tokens=4)
        )
        bad, good = await asyncio.gather(
            answer(engine, poisoned), answer(engine, request(4)), return_exceptions=True
        )
        assert isinstance(bad, EngineError)
        assert "logits are NaN" in str(bad)
        assert good == expected
        with torch.no_grad():
            weight[5] = kept
        assert len(await answer(engine, poisoned)) > 0

    run(body)


def test_a_forward_that_raises_fails_its_batch_only(engine: TransformersEngine) -> None:
    async def body() -> None:
        expected = await answer(engine, request(4))

        def refuse(*_: Any) -> None:
            raise MemoryError("no room")

        hook = engine._model.register_forward_pre_hook(refuse)
        results = await asyncio.gather(
            *(answer(engine, request(4, seed=i)) for i in range(3)), return_exceptions=True
        )
        for result in results:
            assert isinstance(result, EngineError)
            assert "the model failed: MemoryError: no room" in str(result)
            assert isinstance(result.__cause__, MemoryError)
        hook.remove()
        assert await answer(engine, request(4)) == expected

    run(body)


# -- closing


def test_closing_ends_running_and_waiting_requests(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    before = set(threading.enumerate())
    engine = TransformersEngine(
        language_model,
        tokenizer,
        device=CPU,
        dtype=torch.float32,
        config=TransformersEngineConfig(max_num_seqs=1),
    )
    assert "vlcore-engine" in {thread.name for thread in set(threading.enumerate()) - before}

    async def body() -> None:
        started = asyncio.Event()

        async def watched() -> None:
            async with aclosing(engine.generate(request(4, max_new_tokens=LONG))) as generated:
                async for _ in generated:
                    started.set()

        with held(engine, 4):
            tasks = [asyncio.create_task(watched())]
            await started.wait()
            tasks += [asyncio.create_task(watched()) for _ in range(2)]
            await until(lambda: engine.stats().num_waiting == 2)
            await engine.close()
        for task in tasks:
            with pytest.raises(EngineClosedError, match="closed while it served"):
                await task
        with pytest.raises(EngineClosedError, match="engine was closed"):
            await answer(engine, request(4))
        await engine.close()

    run(body)
    assert "vlcore-engine" not in {thread.name for thread in set(threading.enumerate()) - before}


# -- counting


def test_answers_are_counted_rather_than_requests(engine: TransformersEngine) -> None:
    async def body() -> None:
        assert engine.stats() == EngineStats(num_running=0, num_waiting=0)
        one = request(5, n=3, do_sample=True, max_new_tokens=LONG)
        with held(engine, 4):
            async with aclosing(engine.generate(one)) as chunks:
                await anext(chunks)
                assert engine.stats() == EngineStats(num_running=3, num_waiting=0)
        await until(lambda: not engine.stats().num_running)

    run(body)
