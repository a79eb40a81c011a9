from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from held_engine import held
from pipeline_requests import RED, SHORT, vlcore_threads
from waits import TIMEOUT_S, wait_for

from vlcore.errors import (
    EngineClosedError,
)
from vlcore.inference.factory import pipeline
from vlcore.inference.pipeline import Pipeline
from vlcore.inference.response import Response

# -- closing


def test_a_closed_pipeline_has_no_threads_and_rejects_requests(checkpoint: Path) -> None:
    before = vlcore_threads()
    with pipeline(checkpoint, device="cpu") as pipe:
        pipe(("hello", RED), SHORT)
        assert vlcore_threads() - before
    assert vlcore_threads() <= before
    pipe.close()

    async def body() -> None:
        for call in (pipe.ainfer("a"), pipe.achat("a")):
            with pytest.raises(EngineClosedError, match="pipeline was closed"):
                await call
        with pytest.raises(EngineClosedError, match="pipeline was closed"):
            pipe.astream_infer("a")
        await pipe.aclose()

    for call in (pipe, pipe.stream_infer, pipe.chat):
        with pytest.raises(EngineClosedError, match="pipeline was closed"):
            call("a")
    with pytest.raises(EngineClosedError, match="pipeline was closed"):
        pipe.run(pipe.aclose())
    asyncio.run(body())


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        "",
        "next(pipe.stream_infer('a', {'max_new_tokens': 400}))",
        "stream = pipe.stream_infer('a', {'max_new_tokens': 400}); next(stream); del pipe",
    ],
)
def test_a_script_that_does_not_close_its_pipeline_ends_without_errors(
    checkpoint: Path, end: str
) -> None:
    script = f"""
import vlcore
from PIL import Image

pipe = vlcore.pipeline({str(checkpoint)!r}, device="cpu")
pipe(("hello", Image.new("RGB", (40, 40))), {{"max_new_tokens": 2}})
{end}
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert "Exception" not in ended.stderr


def test_an_asynchronous_context_closes_the_pipeline(checkpoint: Path) -> None:
    async def body() -> Pipeline:
        async with pipeline(checkpoint, device="cpu") as pipe:
            assert (await pipe.ainfer("a", SHORT)).generate_token_len == 6
        return pipe

    before = vlcore_threads()
    closed = asyncio.run(body())
    assert vlcore_threads() <= before
    with pytest.raises(EngineClosedError):
        closed("a")


def test_closing_ends_the_requests_of_other_threads(fresh: Pipeline) -> None:
    outcomes: list[Any] = []

    def call(prompts: Any) -> None:
        try:
            outcomes.append(fresh(prompts, {"max_new_tokens": 400, "ignore_eos": True}))
        except Exception as error:
            outcomes.append(error)

    stream = fresh.stream_infer("hello", {"max_new_tokens": 400, "ignore_eos": True})
    next(stream)
    prompts: list[Any] = ["hello", ["hello"] * 200]
    threads = [threading.Thread(target=call, args=(p,), daemon=True) for p in prompts]
    with held(fresh.engine):
        for thread in threads:
            thread.start()
        wait_for(lambda: fresh.engine.stats().num_waiting > 1)
        fresh.close()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    with pytest.raises(EngineClosedError):
        list(stream)
    assert len(outcomes) == 2
    for outcome in outcomes:
        last = outcome[-1].error if isinstance(outcome, list) else outcome
        assert isinstance(last, EngineClosedError)


class SlowServer:
    """Sends one byte of an image, and the rest once it is released."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()
                self.wfile.write(b"x")
                self.wfile.flush()
                outer.requested.set()
                outer.released.wait(TIMEOUT_S)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/image.png"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


# -- options


def test_text_does_not_wait_for_slow_images(fresh: Pipeline) -> None:
    with SlowServer() as server:
        slow: list[Any] = []
        prompts = [("a", server.url)] * 12
        thread = threading.Thread(target=lambda: slow.extend(fresh(prompts, SHORT)))
        thread.start()
        assert server.requested.wait(TIMEOUT_S)
        assert fresh("hello", SHORT).text
        assert not slow
        server.released.set()
        thread.join()
    assert {response.finish_reason for response in slow} == {"error"}


def test_closing_does_not_wait_for_slow_images_and_ends_all_requests(
    checkpoint: Path,
) -> None:
    outcomes: list[str] = []

    def consume(stream: Iterator[Response]) -> None:
        try:
            for _ in stream:
                pass
        except EngineClosedError:
            outcomes.append("closed")

    with SlowServer() as server:
        pipe = pipeline(checkpoint, device="cpu")
        endless = {"max_new_tokens": 450, "ignore_eos": True}
        started = pipe.stream_infer("hello", endless)
        with held(pipe.engine, 4):
            next(started)
            threads = [
                threading.Thread(target=consume, args=(stream,))
                for stream in (pipe.stream_infer(("a", server.url)), started)
            ]
            threads[0].start()
            assert server.requested.wait(TIMEOUT_S)
            pipe.close()
        threads[1].start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert outcomes == ["closed", "closed"]


def test_an_unreferenced_pipeline_is_freed_after_its_streams(checkpoint: Path) -> None:
    before = set(threading.enumerate())
    stream = pipeline(checkpoint, device="cpu").stream_infer("hello", SHORT)
    gc.collect()
    assert sum(len(chunk.token_ids) for chunk in stream) > 0
    del stream
    gc.collect()
    wait_for(lambda: set(threading.enumerate()) <= before)


def test_an_unreferenced_pipeline_is_freed_after_its_asynchronous_streams(
    checkpoint: Path,
) -> None:
    before = vlcore_threads()

    async def body() -> None:
        stream = pipeline(checkpoint, device="cpu").astream_infer("hello", SHORT)
        gc.collect()
        assert sum([len(chunk.token_ids) async for chunk in stream]) == 6

    asyncio.run(body())
    gc.collect()
    wait_for(lambda: vlcore_threads() <= before)
