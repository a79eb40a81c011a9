"""What arrives at TurboMind's C++ part, through lmdeploy's own Python code."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_requests import request, run, text, token_ids
from waits import TIMEOUT_S, until

from vlcore.engines.base import EngineOutput, EngineRequest, EngineStats
from vlcore.engines.detokenizer import Detokenizer
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.errors import (
    ContextLengthError,
    EngineClosedError,
    EngineError,
    OptionError,
    PluginContractError,
)
from vlcore.prompts.tokenization import Span, TokenizedPrompt

if importlib.util.find_spec("lmdeploy") is None:
    pytest.skip("lmdeploy is not installed: make test-turbomind", allow_module_level=True)

if TYPE_CHECKING:
    from turbomind_stand_in import Asked, Communicator

WIDTH = 128
EOS = 2


async def chunks(engine: TurbomindEngine, asked: EngineRequest) -> list[EngineOutput]:
    async with aclosing(engine.generate(asked)) as generated:
        return [chunk async for chunk in generated]


def ask(engine: TurbomindEngine, asked: EngineRequest) -> list[EngineOutput]:
    return asyncio.run(asyncio.wait_for(chunks(engine, asked), 60))


def arrived(engine: TurbomindEngine, communicator: Communicator, **options: Any) -> Asked:
    """Ask with options, and give the one request that arrived."""
    ask(engine, request(5, **options))
    (asked,) = communicator.asked
    return asked


def with_rows(
    *spans: Span, num_tokens: int = 20, num_rows: int = 6, **options: Any
) -> EngineRequest:
    draw = torch.Generator().manual_seed(0)
    ids = list(range(300, 300 + num_tokens))
    for span in spans:
        ids[span.start : span.stop] = [0] * (span.stop - span.start)
    num_images = 1 + max(span.image for span in spans)
    rows = tuple(torch.randn(num_rows, WIDTH, generator=draw) for _ in range(num_images))
    config = GenerationConfig(**{"max_new_tokens": 2, "ignore_eos": True} | options)
    return EngineRequest(TokenizedPrompt(tuple(ids), spans), rows, config)


# -- prompts


def test_token_ids_are_sent_unchanged(engine: TurbomindEngine, communicator: Communicator) -> None:
    asked = request(7)
    ask(engine, asked)
    (at_turbomind,) = communicator.asked
    assert at_turbomind.token_ids == list(asked.prompt.token_ids)
    assert at_turbomind.embeddings is None
    assert at_turbomind.stream_output


def test_embeddings_are_sent_in_the_order_of_their_positions(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    asked = with_rows(Span(12, 18, 0, 0), Span(2, 4, 1, 0), Span(5, 9, 1, 2), Span(9, 9, 1, 6))
    ask(engine, asked)
    (at_turbomind,) = communicator.asked
    assert at_turbomind.ranges == [[2, 4], [5, 9], [12, 18]]
    second, first = (rows.bfloat16() for rows in asked.rows)
    assert at_turbomind.embeddings is not None
    assert at_turbomind.embeddings.dtype is torch.bfloat16
    assert torch.equal(at_turbomind.embeddings, torch.cat([first, second]))


def test_positions_of_embeddings_have_a_token_of_the_prompt(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    ask(engine, with_rows(Span(0, 6, 0, 0), repetition_penalty=1.5))
    (asked,) = communicator.asked
    assert asked.token_ids[:6] == [306] * 6
    assert asked.token_ids[6:] == list(range(306, 320))


@pytest.mark.parametrize(
    ("spans", "options", "error", "message"),
    [
        ([Span(2, 6, 0, 0), Span(4, 6, 0, 4)], {}, PluginContractError, "overlap"),
        ([Span(2, 7, 0, 0)], {}, PluginContractError, "6 embeddings"),
        ([Span(16, 22, 0, 0)], {}, PluginContractError, "is outside of"),
    ],
)
def test_invalid_spans_are_not_sent(
    engine: TurbomindEngine,
    communicator: Communicator,
    spans: list[Span],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    asked = with_rows(*spans, **options)
    fitting = EngineRequest(
        TokenizedPrompt(asked.prompt.token_ids[:20], tuple(spans)), asked.rows, asked.config
    )
    with pytest.raises(error, match=message):
        ask(engine, fitting)
    assert communicator.asked == []


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (EngineRequest(TokenizedPrompt((1, 700))), EngineError, r"must be in 0\.\.699"),
        (
            EngineRequest(TokenizedPrompt((1,) * 512)),
            ContextLengthError,
            "context length is 512",
        ),
        (
            EngineRequest(TokenizedPrompt((1, 0), (Span(1, 2, 0, 0),)), (torch.zeros(1, 64),)),
            PluginContractError,
            r"\[k, 128\].*\[1, 64\]",
        ),
        (
            EngineRequest(
                TokenizedPrompt((1, 0), (Span(1, 2, 0, 0),)), (torch.full((1, 128), torch.inf),)
            ),
            PluginContractError,
            "values too large for bfloat16",
        ),
        (
            EngineRequest(
                TokenizedPrompt((0,), (Span(0, 1, 0, 0),)),
                (torch.zeros(1, 128),),
                GenerationConfig(repetition_penalty=1.2),
            ),
            OptionError,
            "repetition_penalty needs a prompt with",
        ),
    ],
)
def test_invalid_requests_are_not_sent(
    engine: TurbomindEngine,
    communicator: Communicator,
    asked: EngineRequest,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        ask(engine, asked)
    assert communicator.asked == []


# -- options


def test_greedy_answers_sample_from_one_token(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    options = arrived(engine, communicator, max_new_tokens=3).options
    assert options["top_k"] == 1
    assert options["temperature"] == options["top_p"] == options["repetition_penalty"] == 1
    assert options["max_new_tokens"] == 3
    assert options["min_new_tokens"] == 0


def test_every_sampling_option_is_sent(engine: TurbomindEngine, communicator: Communicator) -> None:
    options = arrived(
        engine,
        communicator,
        do_sample=True,
        temperature=0.5,
        top_k=7,
        top_p=0.75,
        min_p=0.25,
        repetition_penalty=1.5,
        random_seed=2**64 - 1,
        bad_token_ids=(5, 3),
    ).options
    assert options["temperature"] == 0.5
    assert options["top_k"] == 7
    assert options["top_p"] == 0.75
    assert options["min_p"] == 0.25
    assert options["repetition_penalty"] == 1.5
    assert options["random_seed"] == 2**64 - 1
    assert options["bad_ids"] == [[3, 5], [1, 2]]


def test_end_tokens_arrive_as_stop_tokens(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    options = arrived(
        engine,
        communicator,
        ignore_eos=False,
        min_new_tokens=2,
        stop_token_ids=(9,),
        stop_words=("<unk>",),
    ).options
    assert options["stop_ids"] == [[0, EOS, 9], [1, 2, 3]]
    assert options["eos_ids"] == [0, EOS, 9]
    assert options["min_new_tokens"] == 2


def test_with_ignore_eos_only_stop_token_ids_end_an_answer(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    options = arrived(engine, communicator, ignore_eos=True, stop_token_ids=(9,)).options
    assert options["stop_ids"] == [[9], [1]]


def test_a_request_without_end_tokens_sends_some_and_ignores_them(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    options = arrived(engine, communicator, ignore_eos=True, min_new_tokens=4).options
    assert options["stop_ids"] == [[], []]
    assert options["eos_ids"] == [EOS]
    assert options["min_new_tokens"] == 0


def test_end_tokens_outside_the_vocabulary_are_kept_away(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    asked = arrived(engine, communicator, stop_token_ids=(9, 700), min_new_tokens=1)
    assert asked.options["eos_ids"] == [9]


def test_an_answer_ends_where_the_context_does(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    outputs = ask(engine, request(508, max_new_tokens=100))
    assert len(token_ids(outputs)) == 4
    assert outputs[-1].finish_reason == "length"
    assert communicator.asked[0].options["max_new_tokens"] == 4


def test_each_of_n_answers_is_a_request_with_its_own_seed(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    asked: dict[str, Any] = {"do_sample": True, "temperature": 1.9, "max_new_tokens": 4}
    outputs = ask(engine, request(5, n=3, random_seed=2**64 - 2, **asked))
    seeds = [one.options["random_seed"] for one in communicator.asked]
    assert sorted(seeds) == [0, 2**64 - 2, 2**64 - 1]
    assert len({one.session_id for one in communicator.asked}) == 3
    alone = ask(engine, request(5, random_seed=2**64 - 1, **asked))
    second = [output for output in outputs if output.choice == 1]
    assert token_ids(second) == token_ids(alone)


def test_greedy_answers_are_generated_once_and_repeated(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    alone = ask(engine, request(5, max_new_tokens=4))
    num_before = len(communicator.asked)
    outputs = ask(engine, request(5, n=3, do_sample=True, temperature=0, max_new_tokens=4))
    assert len(communicator.asked) == num_before + 1
    for choice in range(3):
        assert token_ids([o for o in outputs if o.choice == choice]) == token_ids(alone)


def test_answers_without_a_seed_have_different_seeds(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    for _ in range(2):
        ask(engine, request(5, do_sample=True))
    seeds = {one.options["random_seed"] for one in communicator.asked}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True, "temperature": 2.5}, "at most 2 with TurboMind; it is 2.5"),
        ({"do_sample": True, "top_k": 1025}, "at most 1024 with TurboMind"),
        ({"bad_token_ids": tuple(range(33))}, "at most 32 tokens with TurboMind; there are 33"),
        (
            {"min_new_tokens": 1, "stop_token_ids": tuple(range(33))},
            "at most 32 end tokens with TurboMind; there are 33",
        ),
        ({"logprobs": 701}, "at most 700, the size of the vocabulary"),
    ],
)
def test_options_that_turbomind_would_change_are_refused(
    engine: TurbomindEngine, communicator: Communicator, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        ask(engine, request(5, **options))
    assert communicator.asked == []


# -- answers


def test_more_end_tokens_than_turbomind_supports_also_end_an_answer(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    first, *_ = token_ids(ask(engine, request(5)))
    others = [i for i in range(100, 200) if i != first][:40]
    outputs = ask(engine, request(5, stop_token_ids=(*others, first)))
    assert [(output.token_ids, output.finish_reason) for output in outputs] == [((), "stop")]
    assert len(communicator.asked[-1].options["stop_ids"][0]) == 32


def test_a_stop_string_over_several_tokens_ends_the_answer_and_cancels_the_request(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    whole = text(ask(engine, request(6, max_new_tokens=30)))
    stop = whole[4:9]
    outputs = ask(engine, request(6, max_new_tokens=400, stop_words=(stop,)))
    assert text(outputs) == whole[: whole.index(stop)]
    assert outputs[-1].finish_reason == "stop"
    assert len(token_ids(outputs)) < 30


def test_banned_strings_never_appear(engine: TurbomindEngine, communicator: Communicator) -> None:
    plain = ask(engine, request(6, max_new_tokens=20))
    bad = text(plain)[3:6]
    outputs = ask(engine, request(6, max_new_tokens=20, bad_words=(bad,)))
    assert bad not in text(outputs)
    assert len(token_ids(outputs)) == 20
    pairs = zip(token_ids(plain), token_ids(outputs), strict=True)
    kept = next(index for index, (before, after) in enumerate(pairs) if before != after)
    asked_again = communicator.asked[2]
    assert asked_again.token_ids == [*communicator.asked[1].token_ids, *token_ids(plain)[:kept]]
    assert asked_again.options["max_new_tokens"] == 1
    assert asked_again.options["bad_ids"][0] == [token_ids(plain)[kept]]


def test_banned_strings_that_leave_no_token_are_an_error(
    engine: TurbomindEngine, communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detokenizer, "allows", lambda *_: False)
    with pytest.raises(EngineError, match="bad_words exclude all of the 33 most likely"):
        ask(engine, request(6, bad_words=("any",)))


def test_logprobs_are_of_the_models_own_distribution(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    outputs = ask(engine, request(6, logprobs=3, max_new_tokens=3, repetition_penalty=2.0))
    (asked,) = communicator.asked
    assert asked.options["output_logits"] == 2
    assert asked.options["output_logprobs"] == 0
    generated = [*asked.token_ids, *token_ids(outputs)]
    with torch.inference_mode():
        logits = communicator.model(torch.tensor([generated])).logits[0].float()
    for index, output in enumerate(outputs, start=len(asked.token_ids) - 1):
        (logprobs,) = output.logprobs
        expected = logits[index].log_softmax(-1)
        assert next(iter(logprobs)) == output.token_ids[0]
        for token_id, value in logprobs.items():
            assert value == pytest.approx(float(expected[token_id]), abs=1e-4)
        assert set(expected.topk(3).indices.tolist()) <= set(logprobs)


def test_logits_of_prompt_and_answer_are_returned(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    outputs = ask(engine, request(6, output_logits="all", max_new_tokens=3))
    (asked,) = communicator.asked
    with torch.inference_mode():
        generated = torch.tensor([[*asked.token_ids, *token_ids(outputs)]])
        expected = communicator.model(generated).logits[0].float()
    first, *others = outputs
    assert first.prompt_logits is not None
    torch.testing.assert_close(first.prompt_logits, expected[:6], atol=1e-4, rtol=1e-4)
    assert all(output.prompt_logits is None for output in others)
    for index, output in enumerate(outputs, start=5):
        assert output.logits is not None
        torch.testing.assert_close(output.logits[0], expected[index], atol=1e-4, rtol=1e-4)


def test_logits_of_the_prompt_are_refused_with_a_prefix_cache(
    engine: TurbomindEngine, communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._settings, "enable_prefix_caching", True)
    with pytest.raises(OptionError, match="with enable_prefix_caching"):
        ask(engine, request(6, output_logits="all"))


def test_text_is_streamed_token_by_token(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    seen = threading.Event()

    def wait(num_tokens: int) -> None:
        if num_tokens == 3:
            assert seen.wait(TIMEOUT_S)

    communicator.step = wait

    async def body() -> None:
        async with aclosing(engine.generate(request(6, max_new_tokens=5))) as generated:
            first = [await anext(generated) for _ in range(3)]
            seen.set()
            rest = [chunk async for chunk in generated]
        assert len(token_ids(first)) == 3
        assert len(token_ids(rest)) == 2

    run(body)


# -- instances and cancellation


def hold_after_the_first_token(
    communicator: Communicator,
) -> tuple[threading.Event, threading.Event]:
    """Return what is set at the first token, and the event that lets TurboMind continue."""
    first, go_on = threading.Event(), threading.Event()

    def step(num_tokens: int) -> None:
        if num_tokens:
            first.set()
            assert go_on.wait(TIMEOUT_S)

    communicator.step = step
    return first, go_on


def test_a_cancelled_request_frees_its_instance(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    async def body() -> None:
        for _ in range(3):
            async with aclosing(engine.generate(request(6, max_new_tokens=400))) as generated:
                await anext(generated)
            await until(lambda: not engine._requests)

    run(body)
    assert communicator.num_requests == 1
    assert communicator.in_flight == set()


def test_a_cancelled_task_is_cancelled_at_turbomind(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    first, go_on = hold_after_the_first_token(communicator)

    async def body() -> None:
        task = asyncio.create_task(chunks(engine, request(6, max_new_tokens=400)))
        assert await asyncio.to_thread(first.wait, TIMEOUT_S)
        task.cancel()
        assert await asyncio.to_thread(communicator.was_cancelled.wait, TIMEOUT_S)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not engine._requests)

    run(body)
    assert communicator.in_flight == set()


def test_requests_share_a_pool_of_instances(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    async def body() -> None:
        asked = [request(4 + seed, seed=seed, max_new_tokens=5 + seed) for seed in range(16)]
        together = await asyncio.gather(*(chunks(engine, one) for one in asked))
        alone = [await chunks(engine, one) for one in asked]
        assert [token_ids(outputs) for outputs in together] == [token_ids(one) for one in alone]

    run(body)
    assert communicator.num_requests <= 16
    assert len({asked.session_id for asked in communicator.asked}) == 32


def test_no_more_requests_run_than_turbomind_supports(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    from vlcore.engines.turbomind.requests import InstancePool

    engine._instances = InstancePool(engine._model.create_instance, 2)
    most = 0

    def count(num_tokens: int) -> None:
        nonlocal most
        most = max(most, len(communicator.in_flight))

    communicator.step = count

    async def body() -> None:
        await asyncio.gather(*(chunks(engine, request(5, seed=seed)) for seed in range(6)))

    run(body)
    assert most == communicator.num_requests == 2


def test_a_request_that_waits_for_an_instance_can_be_cancelled(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    from vlcore.engines.turbomind.requests import InstancePool

    engine._instances = InstancePool(engine._model.create_instance, 1)
    first, go_on = threading.Event(), threading.Event()

    def wait(num_tokens: int) -> None:
        first.set()
        assert go_on.wait(TIMEOUT_S)

    communicator.step = wait

    async def body() -> None:
        running = asyncio.create_task(chunks(engine, request(5)))
        assert await asyncio.to_thread(first.wait, TIMEOUT_S)
        waiting = asyncio.create_task(chunks(engine, request(6)))
        await until(lambda: len(engine._requests) == 2)
        waiting.cancel()
        await until(lambda: len(engine._requests) == 1)
        go_on.set()
        assert len(token_ids(await running)) == 8

    run(body)
    assert len(communicator.asked) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (1, "TurboMind failed: it found the prompt's ranges of image embeddings invalid"),
        (2, "another request had the same session id"),
        (6, "longer than its session_len"),
        (8, "it cancelled the request by itself"),
        (9, "cannot return the logits of a prompt"),
        (11, "raise cache_max_entry_count"),
        (-1, "TurboMind failed: INTERNAL_ENGINE_ERROR"),
    ],
)
def test_errors_of_turbomind_are_explained(
    engine: TurbomindEngine, communicator: Communicator, status: int, message: str
) -> None:
    communicator.status = status
    with pytest.raises(EngineError, match=message):
        ask(engine, request(5))
    communicator.status = None
    assert len(token_ids(ask(engine, request(5)))) == 8


def test_a_crash_in_lmdeploy_ends_its_request_alone(
    engine: TurbomindEngine, communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmdeploy.turbomind.turbomind import TurboMindInstance

    with monkeypatch.context() as patch:
        patch.setattr(TurboMindInstance, "prepare_inputs", lambda *_, **__: 1 / 0)
        with pytest.raises(EngineError, match="TurboMind failed: ZeroDivisionError"):
            ask(engine, request(5))
    assert len(token_ids(ask(engine, request(5)))) == 8


def test_closing_fails_the_waiting_requests(
    engine: TurbomindEngine, communicator: Communicator
) -> None:
    first, go_on = hold_after_the_first_token(communicator)

    async def body() -> None:
        task = asyncio.create_task(chunks(engine, request(6, max_new_tokens=400)))
        assert await asyncio.to_thread(first.wait, TIMEOUT_S)
        assert engine.stats() == EngineStats(num_running=1, num_waiting=0)
        closing = asyncio.create_task(engine.close())
        assert await asyncio.to_thread(communicator.was_cancelled.wait, TIMEOUT_S)
        go_on.set()
        await closing
        with pytest.raises(EngineClosedError, match="closed while it served"):
            await task
        assert engine.stats() == EngineStats(num_running=0, num_waiting=0)
        with pytest.raises(EngineClosedError, match="was closed"):
            await chunks(engine, request(6))

    run(body)
