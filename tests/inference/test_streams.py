from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from held_engine import held
from pipeline_requests import RED, SHORT, join

from vlcore.errors import (
    ImageError,
    OptionError,
)
from vlcore.inference.pipeline import Pipeline
from vlcore.inference.response import Session

# -- streams


def test_chunks_join_to_the_response(pipe: Pipeline) -> None:
    whole = pipe(("hello", RED), SHORT)
    chunks = list(pipe.stream_infer(("hello", RED), SHORT))
    assert join(chunks) == (whole.text, whole.token_ids)
    assert [chunk.generate_token_len for chunk in chunks] == list(range(1, 7))
    assert {chunk.input_token_len for chunk in chunks} == {whole.input_token_len}
    reasons = [chunk.finish_reason for chunk in chunks]
    assert reasons == [None] * 5 + ["length"]


def test_chunks_of_a_list_join_to_its_responses(pipe: Pipeline) -> None:
    prompts: list[Any] = ["one", ("two", RED), ("three", "/absent.png"), "four"]
    whole = pipe(prompts, SHORT)
    chunks = list(pipe.stream_infer(prompts, SHORT))
    for index in (0, 1, 3):
        assert join(chunks, index) == (whole[index].text, whole[index].token_ids)
    (bad,) = [chunk for chunk in chunks if chunk.index == 2]
    assert bad.finish_reason == "error"
    assert isinstance(bad.error, ImageError)


def test_a_stream_may_be_abandoned(pipe: Pipeline) -> None:
    several: list[Any] = ["one", "two"]
    for prompts in ("hello", several):
        for _ in pipe.stream_infer(prompts, {"max_new_tokens": 400}):
            break
    assert pipe("hello", SHORT).finish_reason == "length"


def test_a_stream_raises_errors(pipe: Pipeline) -> None:
    with pytest.raises(ImageError, match="absent"):
        list(pipe.stream_infer(("a", "/absent.png"), SHORT))
    with pytest.raises(OptionError, match="beams"):
        list(pipe.stream_infer("a", {"beams": 1}))


# -- from another event loop


def test_the_asynchronous_methods_give_the_same_responses(pipe: Pipeline) -> None:
    expected = pipe(("hello", RED), SHORT)
    prompts: list[Any] = ["one", ("two", RED)]
    several = pipe(prompts, SHORT)

    async def body() -> None:
        assert await pipe.ainfer(("hello", RED), SHORT) == expected
        assert await pipe.ainfer(prompts, SHORT) == several
        chunks = [chunk async for chunk in pipe.astream_infer(("hello", RED), SHORT)]
        assert join(chunks) == (expected.text, expected.token_ids)
        session = await pipe.achat(("hello", RED), gen_config=SHORT)
        assert session.response == expected
        streamed = Session()
        async for _ in pipe.astream_chat(("hello", RED), streamed, SHORT):
            pass
        assert streamed == session
        with pytest.raises(ImageError):
            await pipe.ainfer(("a", "/absent.png"), SHORT)

    asyncio.run(body())


def test_a_coroutine_on_the_loop_of_the_pipeline_may_use_its_methods(pipe: Pipeline) -> None:
    expected = pipe(("hello", RED), SHORT)

    async def body() -> str:
        assert await pipe.ainfer(("hello", RED), SHORT) == expected
        chunks = [chunk async for chunk in pipe.astream_infer(("hello", RED), SHORT)]
        assert join(chunks) == (expected.text, expected.token_ids)
        return threading.current_thread().name

    assert pipe.run(body()) == "vlcore-pipeline"


def test_a_coroutine_on_the_loop_of_the_pipeline_cannot_close_it(pipe: Pipeline) -> None:
    async def body() -> None:
        with pytest.raises(RuntimeError, match="close the pipeline elsewhere"):
            pipe.close()
        with pytest.raises(RuntimeError, match="close the pipeline elsewhere"):
            await pipe.aclose()
        assert (await pipe.ainfer("hello", SHORT)).generate_token_len == 6

    pipe.run(body())
    assert pipe("hello", SHORT).generate_token_len == 6


def test_requests_of_many_callers_run_concurrently(pipe: Pipeline) -> None:
    expected = [pipe((f"question {i}", RED), SHORT).text for i in range(6)]

    async def body() -> None:
        requests = (pipe.ainfer((f"question {i}", RED), SHORT) for i in range(6))
        assert [response.text for response in await asyncio.gather(*requests)] == expected

    asyncio.run(body())


def test_a_cancelled_request_does_not_affect_the_pipeline(pipe: Pipeline) -> None:
    async def body() -> None:
        with held(pipe.engine, 4) as hold:
            endless = {"max_new_tokens": 400, "ignore_eos": True}
            task = asyncio.create_task(pipe.ainfer("hello", endless))
            await asyncio.to_thread(hold.wait_until_held)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await pipe.ainfer("hello", SHORT)).finish_reason == "length"

    asyncio.run(body())
