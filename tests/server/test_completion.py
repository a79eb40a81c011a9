"""Completions of a fake pipeline."""

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
from vlcore.prompts.conversation import Conversation
from vlcore.prompts.messages import ImageSlot, Message, Text
from vlcore.prompts.regions import Region
from vlcore.server.completion import Completion
from vlcore.server.metrics import Metrics
from vlcore.server.request_parsing import ParsedRequest
from vlcore.vision.stats import EncoderStats

WITHOUT_IMAGE = Conversation((Message("user", (Text("Hi"),)),))
WITH_IMAGE = Conversation((Message("user", (ImageSlot(0), Text("Hi"))),), ("image.png",))


def delta(text: str, number: int, finish_reason: Any = None, **more: Any) -> Response:
    return Response(text, number, 10, finish_reason, image_token_len=4, cached_tokens=3, **more)


class FakePipeline:
    """A pipeline that generates the given deltas, and regions if there are any."""

    def __init__(self, *deltas: Response, regions: Any = None) -> None:
        self._deltas = deltas
        self.is_closed = False
        self.template = SimpleNamespace(finds_regions=regions is not None, regions=regions)

    async def astream_infer(self, *_: Any) -> AsyncGenerator[Response]:
        try:
            for delta in self._deltas:
                yield delta
        finally:
            self.is_closed = True

    def token_text(self, token_id: int) -> str:
        return {1: "red", 2: "\ufffd"}[token_id]


def completion_of(pipeline: FakePipeline, **options: Any) -> tuple[Completion, Metrics]:
    metrics = Metrics(EncoderStats, lambda: EngineStats(0, 0), lambda: 0)
    defaults: dict[str, Any] = {
        "conversation": WITH_IMAGE, "config": GenerationConfig(), "stream": False,
        "include_usage": False, "num_top_logprobs": None, "warnings": (),
    }  # fmt: skip
    request = ParsedRequest(**defaults | options)
    return Completion(cast("Pipeline", pipeline), request, "tiny", metrics), metrics


def create(pipeline: FakePipeline, **options: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(asyncio.run(completion_of(pipeline, **options)[0].create()))
    return body


def stream(pipeline: FakePipeline, **options: Any) -> list[Any]:
    async def read() -> bytes:
        return b"".join([chunk async for chunk in completion_of(pipeline, **options)[0].stream()])

    *events, end = asyncio.run(read()).decode().split("\n\n")
    assert end == ""
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_stream_is_the_role_then_the_deltas_then_the_finish_reason() -> None:
    chunks = stream(
        FakePipeline(delta("a ", 1), delta("", 2), delta("b", 3, "stop")), include_usage=True
    )
    *chunks, usage = chunks
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""}, {"content": "a "}, {"content": "b"}, {},
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13,
        "prompt_tokens_details": {"image_tokens": 4, "video_tokens": 0, "cached_tokens": 3},
    }  # fmt: skip


def test_the_tokens_of_all_completions_are_counted() -> None:
    pipeline = FakePipeline(
        delta("a", 1, choice=0), delta("b", 1, choice=1),
        delta("c", 2, "stop", choice=1), delta("d", 2, "length", choice=0),
    )  # fmt: skip
    completion, metrics = completion_of(pipeline)
    body = json.loads(asyncio.run(completion.create()))
    assert [choice["message"]["content"] for choice in body["choices"]] == ["ad", "bc"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "stop"]
    assert body["usage"]["completion_tokens"] == 4
    assert b'vlcore_tokens_total{kind="answer"} 4.0' in metrics.text()
    assert b"vlcore_time_to_first_token_seconds_count 1.0" in metrics.text()


def test_regions_are_fractions_of_the_image() -> None:
    def regions(text: str, size: tuple[int, int]) -> list[Region]:
        assert (text, size) == ("a cat", (10_000, 10_000))
        return [Region("cat", (0, 2500, 5000, 10_000))]

    deltas = (delta("a ", 1), delta("cat", 2, "stop"))
    expected = [{"label": "cat", "box": [0.0, 0.25, 0.5, 1.0]}]
    assert create(FakePipeline(*deltas, regions=regions))["choices"][0]["regions"] == expected
    chunks = stream(FakePipeline(*deltas, regions=regions))
    assert chunks[-1]["choices"][0]["regions"] == expected
    assert not any("regions" in chunk["choices"][0] for chunk in chunks[:-1])
    for body in (
        create(FakePipeline(*deltas)),
        create(FakePipeline(*deltas, regions=lambda *_: [])),
        create(FakePipeline(*deltas, regions=regions), conversation=WITHOUT_IMAGE),
    ):
        assert "regions" not in body["choices"][0]


def test_an_error_in_regions_does_not_affect_the_completion(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def regions(*_: Any) -> Any:
        raise ValueError("no box")

    body = create(FakePipeline(delta("a cat", 1, "stop"), regions=regions))
    assert body["choices"][0]["message"]["content"] == "a cat"
    assert "regions" not in body["choices"][0]
    assert "regions failed" in caplog.text


def test_infinite_logprobs_and_partial_characters_are_valid_json() -> None:
    values = {2: -math.inf, 1: -0.5}
    body = create(
        FakePipeline(delta("x", 1, "stop", token_ids=(2,), logprobs=(values,))), num_top_logprobs=1
    )
    (token,) = body["choices"][0]["logprobs"]["content"]
    assert (token["token"], token["logprob"], token["bytes"]) == ("\ufffd", -9999.0, None)
    assert token["top_logprobs"] == [{"token": "red", "logprob": -0.5, "bytes": [114, 101, 100]}]
    json.dumps(body, allow_nan=False)


def test_logprobs_are_converted_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once would hold the event loop for a second."""
    lengths = []

    def recorded(value: Any, **options: Any) -> str:
        lengths.append(len(text := dumps(value, **options)))
        return text

    dumps = json.dumps
    monkeypatch.setattr("vlcore.server.completion.json.dumps", recorded)
    token = {"token_ids": (1,), "logprobs": ({1: -0.5, 2: -1.0},)}
    deltas = [delta("red", number, **token) for number in range(1, 400)]
    body = create(FakePipeline(*deltas, delta("", 400, "stop")), num_top_logprobs=2)
    assert len(body["choices"][0]["logprobs"]["content"]) == 399
    assert max(lengths) < 2000


def test_separators_of_lines_are_escaped() -> None:
    text = "a\u0085b\u2028c\u2029d"
    pipeline = FakePipeline(delta(text, 1, "stop"))

    async def events() -> bytes:
        completion = completion_of(FakePipeline(delta(text, 1, "stop")))[0]
        return b"".join([event async for event in completion.stream()])

    for data in (asyncio.run(events()), asyncio.run(completion_of(pipeline)[0].create())):
        assert not set("\u0085\u2028\u2029") & set(data.decode())
    assert create(pipeline)["choices"][0]["message"]["content"] == text


def test_a_warning_is_sent_once() -> None:
    assert create(FakePipeline(delta("a", 1, "stop")), warnings=("a warning",))["warnings"] == [
        "a warning"
    ]
    first, *others = stream(
        FakePipeline(delta("a", 1), delta("b", 2, "stop")), warnings=("a warning",)
    )
    assert first["warnings"] == ["a warning"]
    assert not any("warnings" in chunk for chunk in others)


def test_closing_a_stream_closes_the_generator_of_the_pipeline() -> None:
    pipeline = FakePipeline(delta("a", 1), delta("b", 2, "stop"))
    completion, metrics = completion_of(pipeline)

    async def close_early() -> None:
        events = completion.stream()
        await anext(events)
        await events.aclose()

    asyncio.run(close_early())
    assert pipeline.is_closed
    assert b'vlcore_tokens_total{kind="answer"} 1.0' in metrics.text()
