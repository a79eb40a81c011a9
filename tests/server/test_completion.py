"""Answers in the making, by a pipeline that gives what it is told."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vlcore.engines.base import EngineStats
from vlcore.engines.generation import GenerationConfig
from vlcore.inference.pipeline import Pipeline
from vlcore.inference.response import Response
from vlcore.prompts.regions import Region
from vlcore.server.completion import Completion
from vlcore.server.metrics import Metrics
from vlcore.server.request_parsing import ParsedRequest
from vlcore.vision.stats import EncoderStats


def piece(text: str, number: int, finish_reason: Any = None, **more: Any) -> Response:
    return Response(text, number, 10, finish_reason, image_token_len=4, **more)


class Told:
    """A pipeline that gives these pieces, and regions if there are any."""

    def __init__(self, *pieces: Response, regions: Any = None) -> None:
        self._pieces = pieces
        self.is_closed = False
        self.template = SimpleNamespace(finds_regions=regions is not None, regions=regions)

    async def astream_infer(self, *_: Any) -> AsyncGenerator[Response]:
        try:
            for piece in self._pieces:
                yield piece
        finally:
            self.is_closed = True

    def token_text(self, token_id: int) -> str:
        return {1: "red", 2: "\ufffd"}[token_id]


def asked(pipeline: Told, **options: Any) -> tuple[Completion, Metrics]:
    metrics = Metrics(EncoderStats, lambda: EngineStats(0, 0), lambda: 0)
    defaults: dict[str, Any] = {
        "messages": [], "config": GenerationConfig(), "streams": False, "wants_usage": False,
        "num_top_logprobs": None, "warnings": (), "has_images": True,
    }  # fmt: skip
    question = ParsedRequest(**defaults | options)
    return Completion(cast("Pipeline", pipeline), question, "tiny", metrics), metrics


def whole(pipeline: Told, **options: Any) -> dict[str, Any]:
    return asyncio.run(asked(pipeline, **options)[0].whole())


def stream(pipeline: Told, **options: Any) -> list[Any]:
    async def read() -> bytes:
        return b"".join([chunk async for chunk in asked(pipeline, **options)[0].chunks()])

    *events, end = asyncio.run(read()).decode().split("\n\n")
    assert end == ""
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_stream_is_a_role_then_texts_then_an_end() -> None:
    chunks = stream(Told(piece("a ", 1), piece("", 2), piece("b", 3, "stop")), wants_usage=True)
    *chunks, usage = chunks
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""}, {"content": "a "}, {"content": "b"}, {},
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13,
        "prompt_tokens_details": {"image_tokens": 4, "cached_tokens": 0},
    }  # fmt: skip


def test_the_tokens_of_all_answers_are_counted() -> None:
    answers = Told(
        piece("a", 1, choice=0), piece("b", 1, choice=1),
        piece("c", 2, "stop", choice=1), piece("d", 2, "length", choice=0),
    )  # fmt: skip
    answer, metrics = asked(answers)
    body = asyncio.run(answer.whole())
    assert [choice["message"]["content"] for choice in body["choices"]] == ["ad", "bc"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "stop"]
    assert body["usage"]["completion_tokens"] == 4
    assert b'vlcore_tokens_total{kind="answer"} 4.0' in metrics.text()
    assert b"vlcore_time_to_first_token_seconds_count 1.0" in metrics.text()


def test_regions_are_fractions_of_the_picture() -> None:
    def regions(text: str, size: tuple[int, int]) -> list[Region]:
        assert (text, size) == ("a cat", (10_000, 10_000))
        return [Region("cat", (0, 2500, 5000, 10_000))]

    pieces = (piece("a ", 1), piece("cat", 2, "stop"))
    expected = [{"label": "cat", "box": [0.0, 0.25, 0.5, 1.0]}]
    assert whole(Told(*pieces, regions=regions))["choices"][0]["regions"] == expected
    chunks = stream(Told(*pieces, regions=regions))
    assert chunks[-1]["choices"][0]["regions"] == expected
    assert not any("regions" in chunk["choices"][0] for chunk in chunks[:-1])
    for told in (
        whole(Told(*pieces)),
        whole(Told(*pieces, regions=lambda *_: [])),
        whole(Told(*pieces, regions=regions), has_images=False),
    ):
        assert "regions" not in told["choices"][0]


def test_a_fault_in_regions_leaves_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    def regions(*_: Any) -> Any:
        raise ValueError("no box")

    body = whole(Told(piece("a cat", 1, "stop"), regions=regions))
    assert body["choices"][0]["message"]["content"] == "a cat"
    assert "regions" not in body["choices"][0]
    assert "regions failed" in caplog.text


def test_logprobs_are_json_whatever_they_are() -> None:
    values = {2: -math.inf, 1: -0.5}
    body = whole(
        Told(piece("x", 1, "stop", token_ids=(2,), logprobs=(values,))), num_top_logprobs=1
    )
    (token,) = body["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["logprob"], token["bytes"]) == ("\ufffd", -9999.0, None)
    assert token["top_logprobs"] == [{"token": "red", "logprob": -0.5, "bytes": [114, 101, 100]}]
    json.dumps(body, allow_nan=False)


def test_a_warning_comes_once() -> None:
    assert whole(Told(piece("a", 1, "stop")), warnings=("careful",))["warnings"] == ["careful"]
    first, *more = stream(Told(piece("a", 1), piece("b", 2, "stop")), warnings=("careful",))
    assert first["warnings"] == ["careful"]
    assert not any("warnings" in chunk for chunk in more)


def test_a_stream_that_is_given_up_gives_the_pipeline_up() -> None:
    told = Told(piece("a", 1), piece("b", 2, "stop"))
    answer, metrics = asked(told)

    async def give_up() -> None:
        chunks = answer.chunks()
        await anext(chunks)
        await chunks.aclose()

    asyncio.run(give_up())
    assert told.is_closed
    assert b'vlcore_tokens_total{kind="answer"} 1.0' in metrics.text()
