"""What arrives at TurboMind's C++ part, through lmdeploy's own Python code."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_requests import request, run, token_ids
from waits import TIMEOUT_S, until

from vlcore.engines.base import EngineRequest, EngineStats
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
    from turbomind_stand_in import Communicator
from turbomind_requests import ask, chunks

WIDTH = 128


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


# -- instances and cancellation


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
