"""Requests with a fake of lmdeploy's instance; tests/turbomind runs the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from engine_requests import run as run_loop
from transformers import PreTrainedTokenizerBase

from vlcore.engines.base import EngineOutput, EngineRequest
from vlcore.engines.external.prompt import HostPrompt
from vlcore.engines.external.sequence import ExternalSequence
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.turbomind.requests import InstancePool, TurbomindRequest
from vlcore.errors import EngineClosedError, EngineError, VlcoreError
from vlcore.prompts.tokenization import TokenizedPrompt

PROMPT = HostPrompt((5, 6))
EOS = 2
Script = list[tuple[str, list[int]]]


class Instance:
    """Returns the outputs of a script: the name of a status and the next tokens for each step."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.asked: list[list[int]] = []
        self.num_drained = 0
        self.cancelled = asyncio.Event()

    async def async_stream_infer(
        self, session_id: int, input_ids: list[int], **_: Any
    ) -> AsyncGenerator[Any]:
        self.asked.append(input_ids)
        self.cancelled.clear()
        try:
            for status, token_ids in self.scripts.pop(0):
                await asyncio.sleep(0)
                if status == "WAIT":
                    await self.cancelled.wait()
                    continue
                yield SimpleNamespace(
                    status=SimpleNamespace(name=status), token_ids=token_ids, logits=None
                )
        finally:
            self.num_drained += 1

    async def async_cancel(self, session_id: int) -> None:
        self.cancelled.set()


def make_run(
    tokenizer: PreTrainedTokenizerBase,
    instances: InstancePool,
    emitted: list[EngineOutput | VlcoreError],
    max_new_tokens: int = 6,
    **options: Any,
) -> TurbomindRequest:
    config = GenerationConfig(max_new_tokens=max_new_tokens, **options)
    answer = ExternalSequence(
        EngineRequest(TokenizedPrompt(PROMPT.token_ids), (), config),
        0,
        stop_conditions=StopConditions(frozenset({EOS}), {}),
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        emit=emitted.append,
    )

    def left(answer: ExternalSequence) -> Any:
        return SimpleNamespace(
            max_new_tokens=1 if answer.banned_token_ids else answer.num_remaining
        )

    return TurbomindRequest(answer, PROMPT, instances, left)


def serve(
    tokenizer: PreTrainedTokenizerBase,
    *scripts: Script,
    while_it_runs: Callable[[TurbomindRequest], Coroutine[Any, Any, None]] | None = None,
    max_new_tokens: int = 6,
    **options: Any,
) -> tuple[Instance, list[EngineOutput | VlcoreError]]:
    """Serve one answer by scripts; gives the instance, and what came out."""
    instance = Instance(*scripts)
    emitted: list[EngineOutput | VlcoreError] = []

    async def body() -> None:
        run = make_run(
            tokenizer, InstancePool(lambda: instance, 1), emitted, max_new_tokens, **options
        )
        task = asyncio.create_task(run.run())
        if while_it_runs is not None:
            await while_it_runs(run)
        await task

    run_loop(body)
    return instance, emitted


def ids_of(emitted: list[EngineOutput | VlcoreError]) -> list[int]:
    return [i for chunk in emitted if isinstance(chunk, EngineOutput) for i in chunk.token_ids]


def reason_of(emitted: list[EngineOutput | VlcoreError]) -> str | None:
    last = emitted[-1]
    assert isinstance(last, EngineOutput)
    return last.finish_reason


def test_an_answer_ends_at_its_length(tokenizer: PreTrainedTokenizerBase) -> None:
    script: Script = [("SUCCESS", [300, 301]), ("FINISH", [302])]
    instance, emitted = serve(tokenizer, script, max_new_tokens=3)
    assert ids_of(emitted) == [300, 301, 302]
    assert reason_of(emitted) == "length"
    assert instance.num_drained == 1


@pytest.mark.parametrize("last", [[EOS], []])
def test_an_answer_ends_at_an_end_token_whether_it_is_returned_or_not(
    tokenizer: PreTrainedTokenizerBase, last: list[int]
) -> None:
    _, emitted = serve(tokenizer, [("SUCCESS", [300]), ("FINISH", last)])
    assert ids_of(emitted) == [300]
    assert reason_of(emitted) == "stop"


def test_output_after_the_end_is_read_and_dropped(tokenizer: PreTrainedTokenizerBase) -> None:
    script: Script = [("SUCCESS", [300, EOS, 301]), ("WAIT", []), ("CANCEL", [302])]
    instance, emitted = serve(tokenizer, script)
    assert ids_of(emitted) == [300]
    assert instance.cancelled.is_set()
    assert instance.num_drained == 1


def test_the_answer_continues_without_a_banned_string(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlcore.engines.detokenizer import Detokenizer

    monkeypatch.setattr(Detokenizer, "allows", lambda _, token_id: token_id not in (301, 302))
    instance, emitted = serve(
        tokenizer,
        [("SUCCESS", [300, 301]), ("WAIT", []), ("CANCEL", [399])],
        [("FINISH", [302])],
        [("FINISH", [303])],
        [("SUCCESS", [304]), ("FINISH", [305])],
        max_new_tokens=4,
        bad_words=("bad",),
    )
    assert ids_of(emitted) == [300, 303, 304, 305]
    assert reason_of(emitted) == "length"
    assert instance.asked == [[5, 6], [5, 6, 300], [5, 6, 300], [5, 6, 300, 303]]
    assert instance.num_drained == 4


def test_a_failure_ends_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    instance, emitted = serve(tokenizer, [("SUCCESS", [300]), ("OUT_OF_MEMORY", [])])
    assert ids_of(emitted) == [300]
    assert isinstance(emitted[-1], EngineError)
    assert "cache_max_entry_count" in str(emitted[-1])
    assert instance.num_drained == 1


def test_closing_cancels_the_request_with_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    async def close_soon(run: TurbomindRequest) -> None:
        while not run.sequence.token_ids:
            await asyncio.sleep(0)
        run.close()

    script: Script = [("SUCCESS", [300]), ("WAIT", []), ("CANCEL", [])]
    instance, emitted = serve(tokenizer, script, while_it_runs=close_soon)
    assert isinstance(emitted[-1], EngineClosedError)
    assert instance.num_drained == 1


def test_a_request_that_is_cancelled_before_it_starts_is_never_sent(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    async def cancel_at_once(run: TurbomindRequest) -> None:
        run.cancel()

    instance, emitted = serve(tokenizer, while_it_runs=cancel_at_once)
    assert (instance.asked, emitted) == ([], [])


def test_an_instance_is_reused_only_after_its_cancellation(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    events: list[str] = []

    class SlowToCancel(Instance):
        async def async_cancel(self, session_id: int) -> None:
            self.cancelled.set()
            for _ in range(20):
                await asyncio.sleep(0)
            events.append(f"{session_id} is cancelled")

    instance = SlowToCancel([("SUCCESS", [300]), ("WAIT", []), ("CANCEL", [])])

    async def body() -> None:
        instances = InstancePool(lambda: instance, 1)
        emitted: list[EngineOutput | VlcoreError] = []
        first = make_run(tokenizer, instances, emitted)
        task = asyncio.create_task(first.run())
        while not emitted:
            await asyncio.sleep(0)
        first.cancel()
        async with instances.borrow():
            events.append("lent again")
        await task

    run_loop(body)
    assert events == ["1 is cancelled", "lent again"]


def test_an_answer_whose_receiver_is_closed_is_cancelled(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    instance = Instance([("SUCCESS", [300]), ("WAIT", []), ("CANCEL", [])])

    class Gone(list[EngineOutput | VlcoreError]):
        def append(self, chunk: EngineOutput | VlcoreError) -> None:
            raise RuntimeError("Event loop is closed")

    async def body() -> None:
        await make_run(tokenizer, InstancePool(lambda: instance, 1), Gone()).run()

    run_loop(body)
    assert instance.num_drained == 1


def test_an_instance_that_failed_is_not_reused() -> None:
    made: list[object] = []

    def create() -> object:
        made.append(object())
        return made[-1]

    async def body() -> None:
        instances = InstancePool(create, 1)
        with pytest.raises(ZeroDivisionError):
            async with instances.borrow():
                raise ZeroDivisionError
        assert instances.num_in_use == 0
        async with instances.borrow() as second:
            assert second is made[1]
            assert instances.num_in_use == 1
        async with instances.borrow() as third:
            assert third is second
        assert [instances.next_session_id() for _ in range(3)] == [1, 2, 3]

    run_loop(body)
