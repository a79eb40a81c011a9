from __future__ import annotations

import gc
import logging
import re
import signal
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import pytest
from held_engine import held
from server.conftest import DEMO, clock_of, running
from server.wire import (
    LONG,
    chat_body,
    connect,
    post,
    read_all,
    read_until,
    send_and_read,
)
from waits import TIMEOUT_S, wait_for

import vlcore
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import EngineClosedError
from vlcore.inference.pipeline import Pipeline
from vlcore.server import serving
from vlcore.server.settings import ServerSettings


def pipeline() -> Pipeline:
    return vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")


# ``vlcore serve`` with an engine that generates five tokens per second.
SLOW_SERVE = """
import sys, time
from vlcore.cli import main
from vlcore.engines.transformers.batch import Batch

decode = Batch.decode

def decode_slowly(batch):
    time.sleep(0.2)
    return decode(batch)

Batch.decode = decode_slowly
sys.argv[1:1] = ["serve"]
main()
"""
READY_REQUEST = b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n"


def test_running_requests_finish_while_new_ones_are_refused() -> None:
    pipe = pipeline()
    with running(pipe, shutdown_timeout_s=TIMEOUT_S) as server, held(pipe.engine, 4) as hold:
        tokens = {"max_tokens": 50, "ignore_eos": True, "stream": True}
        with connect(server) as streaming, connect(server) as kept:
            streaming.sendall(post(chat_body(**tokens)))
            read_until(streaming, b"data: ")
            kept.sendall(READY_REQUEST)
            assert b"200 OK" in read_until(kept, b'"ready"}')
            server.stop()
            for _ in range(2):  # the server still listens
                assert send_and_read(server, READY_REQUEST)[0] == 503
                status, received = send_and_read(server, post(chat_body()))
                assert status == 503
                assert "retry-after" in received.lower()
            kept.sendall(READY_REQUEST)
            assert b"503" in read_until(kept, b"stopping")
            hold.release()
            assert b"[DONE]" in read_until(streaming, b"[DONE]")


def test_an_unfinished_request_is_cancelled_with_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pipe = pipeline()
    limit_s = 5000.0
    with (
        running(pipe, shutdown_timeout_s=limit_s, deadline_s=2 * limit_s) as server,
        held(pipe.engine, 4),
        connect(server) as connection,
    ):
        clock = clock_of(pipe)
        connection.sendall(post(chat_body(stream=True, **LONG)))
        read_until(connection, b"data: ")
        server.stop()
        wait_for(lambda: "stopping: 1 requests are running" in caplog.text)
        clock.advance(limit_s)
        assert b'"code":"stopping"' in read_all(connection)


def test_sampling_defaults_are_limited_to_what_the_engine_supports(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint may recommend more, and a request that states nothing must not be refused."""
    with pipeline() as pipe:
        monkeypatch.setattr(type(pipe.engine), "max_values", {"temperature": 2.0, "top_k": 1024})
        stated = {"temperature": 2.5, "top_k": 2000, "top_p": 0.5}
        settings = ServerSettings(model_name="tiny", sampling_defaults=stated)
        server = serving.Server(pipe, settings)
    assert server.sampling_defaults == {"temperature": 2.0, "top_k": 1024, "top_p": 0.5}
    assert "top_k is 2000, and the transformers engine supports at most 1024" in caplog.text


def test_no_collection_of_all_objects_and_no_thread_holds_up_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full collection of all that is loaded takes longer than the event loop may wait."""
    num_frozen: list[int] = []
    intervals_s = [sys.getswitchinterval()]

    class Stub(AbstractContextManager[None]):
        def __init__(self, *_: object) -> None:
            self.serve = list
            self.failure = None

        def run(self, _: object) -> None:
            num_frozen.append(gc.get_freeze_count())
            intervals_s.append(sys.getswitchinterval())

        sampling_defaults: ClassVar[dict[str, Any]] = {}

        def __exit__(self, *_: object) -> None:
            num_frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(serving, "Server", Stub)
    settings = ServerSettings(model_name="tiny", port=0)
    with serving.bind(settings) as bound:
        serving.serve(Stub(), settings, bound)  # type: ignore[arg-type]
    assert all(number > 10_000 for number in num_frozen)
    assert gc.get_freeze_count() < 10_000
    assert intervals_s[1] < intervals_s[0] == sys.getswitchinterval()


@pytest.mark.slow
def test_the_command_stops_cleanly_and_at_once_on_a_second_signal() -> None:
    command = [sys.executable, "-c", SLOW_SERVE, str(DEMO / "tiny-llava"), "--port", "0"]
    command += ["--model-name", "tiny", "--device", "cpu", "--shutdown-timeout-s", "5000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = next(
            int(match[1])
            for line in process.stderr
            if (match := re.search(r"http://127\.0\.0\.1:(\d+)", line))
        )
        try:
            with connect_to(port) as connection:
                connection.sendall(post(chat_body(stream=True, **LONG)))
                read_until(connection, b"data: ")
                process.send_signal(signal.SIGTERM)
                wait_for(lambda: is_stopping(port))
                assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                log = process.stderr.read()
                assert process.wait(TIMEOUT_S) == 0, log
        finally:
            process.kill()
    assert "Traceback" not in log


def connect_to(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def is_stopping(port: int) -> bool:
    with connect_to(port) as connection:
        connection.sendall(READY_REQUEST)
        return b" 503 " in read_until(connection, b"\r\n")


def test_an_engine_that_fails_stops_the_server_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failure: list[str] = []
    monkeypatch.setattr(TransformersEngine, "failure", property(lambda _: "".join(failure) or None))
    pipe = pipeline()
    with running(pipe, shutdown_timeout_s=TIMEOUT_S) as server, held(pipe.engine, 4) as hold:
        with connect(server) as streaming:
            streaming.sendall(post(chat_body(stream=True, **LONG)))
            read_until(streaming, b"data: ")  # a running request keeps the server from ending
            failure.append("the engine has burnt down")
            wait_for(lambda: server.failure)
            status, received = send_and_read(server, READY_REQUEST)
            assert status == 503
            assert "the engine has burnt down" in received
            assert "engine_failed" in received
            assert send_and_read(server, post(chat_body()))[0] == 503
        hold.release()
    assert server.failure == "the engine has burnt down"
    assert "the engine has burnt down" in caplog.text


def test_serving_ends_with_an_error_if_the_engine_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TransformersEngine, "failure", "the engine has burnt down")
    settings = ServerSettings(model_name="tiny", port=0)
    with (
        serving.bind(settings) as bound,
        pytest.raises(EngineClosedError, match="has burnt down"),
    ):
        serving.serve(pipeline(), settings, bound)
