from __future__ import annotations

import asyncio
import inspect
import logging
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, suppress
from typing import Any

import pytest
from held_engine import held
from held_engine import is_idle as engine_is_idle
from loop_clock import LoopClock
from server.conftest import DEMO, clock_of, running
from server.wire import (
    LONG,
    chat_body,
    closing,
    connect,
    is_write_paused,
    metric,
    outcomes,
    post,
    read_all,
    read_until,
    send_and_read,
)
from waits import TIMEOUT_S, wait_for

import vlcore
from vlcore._utils.fair_queue import current_client
from vlcore.engines.base import EngineOutput, EngineRequest
from vlcore.inference.pipeline import Pipeline
from vlcore.media.policy import ImageAccess
from vlcore.server.serving import Server

DEADLINE_S = 10_000.0
BODY_TIMEOUT_S = 5000.0


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def server(pipe: Pipeline) -> Iterator[Server]:
    """A server whose time limits pass only when a test moves its clock."""
    limits = {"deadline_s": DEADLINE_S, "body_timeout_s": BODY_TIMEOUT_S, "max_requests": 3}
    limits["write_timeout_s"] = 2 * DEADLINE_S
    with running(pipe, **limits) as server:
        yield server


@pytest.fixture(scope="module")
def clock(pipe: Pipeline, server: Server) -> LoopClock:
    """The clock of the server."""
    return clock_of(pipe)


@pytest.fixture(scope="module")
def narrow_server() -> Iterator[tuple[Pipeline, Server]]:
    """A server whose engine runs one sequence at a time, and that downloads from this machine."""
    pipe = vlcore.pipeline(
        DEMO / "tiny-llava",
        device="cpu",
        dtype="float32",
        engine_config=vlcore.TransformersEngineConfig(max_num_seqs=1),
        image_access=ImageAccess(allowed_hosts=["127.0.0.1"]),
    )
    with running(pipe, max_body_bytes=2000) as server:
        yield pipe, server


def is_idle(pipe: Pipeline, server: Server) -> bool:
    return metric(server, "vlcore_active_requests") == 0 and engine_is_idle(pipe.engine)


def num_receiving(server: Server) -> int:
    """Return the number of requests whose body is incomplete."""
    connections: list[Any] = list(server.server_state.connections)
    cycles = [connection.cycle for connection in connections if connection.is_responding]
    return sum(cycle.more_body for cycle in cycles)


@pytest.mark.parametrize("streams", [True, False])
def test_a_disconnected_client_frees_its_batch_slot_and_its_permit(
    server: Server, pipe: Pipeline, streams: bool
) -> None:
    num_disconnected = outcomes(server, "disconnected")
    with held(pipe.engine, 4) as hold:
        with connect(server) as connection:
            connection.sendall(post(chat_body(stream=streams, **LONG)))
            if streams:
                read_until(connection, b"data: ")
            hold.wait_until_held()
        wait_for(lambda: outcomes(server, "disconnected") == num_disconnected + 1)
        started = hold.num_started
        hold.release()
        wait_for(lambda: is_idle(pipe, server))
        assert hold.num_started == started


def test_a_client_that_closes_its_sending_side_receives_the_response(
    server: Server, pipe: Pipeline
) -> None:
    tokens = {"max_tokens": 20, "ignore_eos": True}
    with held(pipe.engine, 4) as hold, connect(server) as connection:
        connection.sendall(post(chat_body(**tokens)))
        connection.shutdown(socket.SHUT_WR)
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 102 ")
        hold.release()
        assert b'"finish_reason":"length"' in read_all(connection)
    with connect(server) as connection:
        connection.sendall(post(chat_body(**tokens, stream=True)))
        connection.shutdown(socket.SHUT_WR)
        assert b"[DONE]" in read_all(connection)


def test_a_client_that_closes_its_sending_side_within_its_body_has_disconnected(
    server: Server,
) -> None:
    num_disconnected = outcomes(server, "disconnected")
    with connect(server) as connection:
        connection.sendall(post(chat_body())[:-5])
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    wait_for(lambda: outcomes(server, "disconnected") == num_disconnected + 1)


def test_a_token_passes_through_three_generators(
    server: Server, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_generators: list[int] = []
    generate = pipe.engine.generate

    async def counting(request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        """Generate in place of the engine, and count the generators that wait for the token."""
        async with aclosing(generate(request)) as outputs:
            async for output in outputs:
                frames = inspect.stack(context=0)
                flags = [frame.frame.f_code.co_flags for frame in frames]
                num_generators.append(
                    sum(bool(flag & inspect.CO_ASYNC_GENERATOR) for flag in flags)
                )
                yield output

    monkeypatch.setattr(pipe.engine, "generate", counting)
    with connect(server) as connection:
        connection.sendall(post(chat_body(stream=True, max_tokens=4, ignore_eos=True)))
        read_until(connection, b"[DONE]")
    assert num_generators == [3] * 4


def test_a_disconnected_client_leaves_the_waiting_queue(
    narrow_server: tuple[Pipeline, Server],
) -> None:
    pipe, server = narrow_server
    with held(pipe.engine, 4), connect(server) as first:
        first.sendall(post(chat_body(stream=True, **LONG)))
        read_until(first, b"data: ")
        with connect(server) as second:
            second.sendall(post(chat_body(**LONG)))
            wait_for(lambda: metric(server, "vlcore_answers_waiting") == 1)
            assert metric(server, "vlcore_answers_running") == 1
        wait_for(lambda: metric(server, "vlcore_answers_waiting") == 0)
        assert metric(server, "vlcore_answers_running") == 1
        wait_for(lambda: metric(server, "vlcore_active_requests") == 1)
    wait_for(lambda: is_idle(pipe, server))


def test_a_disconnected_client_ends_its_downloads(
    narrow_server: tuple[Pipeline, Server],
) -> None:
    pipe, server = narrow_server
    with socket.create_server(("127.0.0.1", 0)) as image_server:
        url = f"http://127.0.0.1:{image_server.getsockname()[1]}/never.png"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        with connect(server) as connection:
            connection.sendall(post(chat_body(messages=[{"role": "user", "content": content}])))
            image_server.settimeout(TIMEOUT_S)
            download, _ = image_server.accept()
            download.settimeout(TIMEOUT_S)
            assert read_until(download, b"\r\n\r\n").startswith(b"GET /never.png")
        with download:
            assert read_all(download) == b""
    wait_for(lambda: is_idle(pipe, server))


def test_a_chunked_body_is_limited_too(narrow_server: tuple[Pipeline, Server]) -> None:
    pipe, server = narrow_server
    head = post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    chunk = b"1f4\r\n" + b" " * 500 + b"\r\n"
    status, received = send_and_read(server, head + 5 * chunk)  # without an end
    assert status == 413
    assert "max_body_bytes" in received
    wait_for(lambda: is_idle(pipe, server))


def test_a_request_above_the_bound_receives_429(server: Server, pipe: Pipeline) -> None:
    with held(pipe.engine) as hold, ExitStack() as stack:
        running = [stack.enter_context(connect(server)) for _ in range(3)]
        for connection in running:
            connection.sendall(post(chat_body(stream=True, **LONG)))
            hold.allow(3)
            read_until(connection, b"data: ")
        status, received = send_and_read(server, post(chat_body()))
        assert status == 429
        assert "\r\nretry-after: 1\r\n" in received.lower()
        assert "max_requests" in received
        running[0].close()
        wait_for(lambda: metric(server, "vlcore_active_requests") == 2)
        hold.release()
        assert send_and_read(server, post(chat_body()))[0] == 200
    wait_for(lambda: is_idle(pipe, server))


def test_a_client_that_disconnects_within_its_body_is_counted(
    server: Server, pipe: Pipeline
) -> None:
    num_disconnected = outcomes(server, "disconnected")
    with connect(server) as connection:
        connection.sendall(post(b'{"model"', length=1000))
        wait_for(lambda: num_receiving(server) == 1)
    wait_for(lambda: outcomes(server, "disconnected") == num_disconnected + 1)
    wait_for(lambda: is_idle(pipe, server))


def test_incomplete_bodies_hold_no_permit(server: Server, pipe: Pipeline) -> None:
    with ExitStack() as stack:
        for _ in range(8):  # more than max_requests
            connection = stack.enter_context(connect(server))
            connection.sendall(post(b"{", length=1000))
        wait_for(lambda: num_receiving(server) == 8)
        assert send_and_read(server, post(chat_body()))[0] == 200
    wait_for(lambda: num_receiving(server) == 0)
    wait_for(lambda: is_idle(pipe, server))


@pytest.mark.parametrize("streams", [True, False])
def test_the_deadline_before_the_first_token_is_a_status(
    server: Server, pipe: Pipeline, clock: LoopClock, streams: bool
) -> None:
    with held(pipe.engine) as hold, connect(server) as connection:
        connection.sendall(post(chat_body(stream=streams, **LONG)))
        hold.wait_until_held()
        clock.advance(DEADLINE_S)
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 504 ")
    assert b"deadline_exceeded" in received
    wait_for(lambda: is_idle(pipe, server))


def test_the_deadline_after_the_first_token_is_an_event(
    server: Server, pipe: Pipeline, clock: LoopClock
) -> None:
    with held(pipe.engine, 4), connect(server) as connection:
        connection.sendall(closing(post(chat_body(stream=True, **LONG))))
        received = read_until(connection, b"data: ")
        clock.advance(DEADLINE_S)
        received += read_all(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'"code":"deadline_exceeded"' in received
    assert b"[DONE]" not in received
    wait_for(lambda: is_idle(pipe, server))


def test_a_client_that_never_reads_is_disconnected_at_the_deadline(
    server: Server, pipe: Pipeline, clock: LoopClock, caplog: pytest.LogCaptureFixture
) -> None:
    for listening in server.servers[0].sockets:  # the buffers between the two fill up soon
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    with socket.socket() as reader, caplog.at_level(logging.WARNING):
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.connect(server.address)
        # Many long events fill the server's own buffer too.
        options = LONG | {"temperature": 1, "n": 4, "logprobs": True, "top_logprobs": 20}
        reader.sendall(post(chat_body(stream=True, **options)))
        wait_for(lambda: is_write_paused(server))
        assert send_and_read(server, post(chat_body()))[0] == 200  # other clients are served
        clock.advance(DEADLINE_S)
        wait_for(lambda: is_idle(pipe, server))
        wait_for(lambda: "a client did not read its response in time" in caplog.messages)
        received = b""
        with suppress(ConnectionResetError):
            received = read_until(reader, b"[DONE]")
    assert b"deadline_exceeded" not in received
    assert not received.endswith(b"0\r\n\r\n")  # the end of a complete response
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_slow_body_receives_408(server: Server, clock: LoopClock) -> None:
    with connect(server) as connection:
        connection.sendall(post(b'{"model"', length=1000))
        wait_for(lambda: num_receiving(server) == 1)
        clock.advance(BODY_TIMEOUT_S)
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in received


def test_no_task_is_left_after_good_bad_or_aborted_requests(server: Server, pipe: Pipeline) -> None:
    async def num_tasks() -> int:
        return len(asyncio.all_tasks())

    wait_for(lambda: is_idle(pipe, server))
    before = pipe.run(num_tasks())
    for body in (chat_body(), chat_body(stream=True), b"{", chat_body(temperature=9)):
        send_and_read(server, post(body))
    for body in (
        chat_body(),
        chat_body(stream=True),
        b"{",
        chat_body(temperature=9),
        chat_body(**LONG),
    ):
        with connect(server) as connection:
            connection.sendall(post(body)[:-3])
        with connect(server) as connection:
            connection.sendall(post(body))
    wait_for(lambda: is_idle(pipe, server))
    wait_for(lambda: pipe.run(num_tasks()) <= before)


def test_a_bad_request_does_not_affect_concurrent_ones(server: Server) -> None:
    alone = send_and_read(server, post(chat_body(max_tokens=24, ignore_eos=True)))[1]
    with connect(server) as connection:
        connection.sendall(post(chat_body(max_tokens=24, ignore_eos=True)))
        for body in (b"{", chat_body(model="another"), chat_body(temperature=9)):
            assert send_and_read(server, post(body))[0] in (400, 404)
        received = read_until(connection, b'"cached_tokens":0}}}').decode()
    mark = '"message":{'
    assert (
        received.partition(mark)[2].partition("}")[0] == alone.partition(mark)[2].partition("}")[0]
    )


def test_requests_of_one_client_share_its_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    clients: list[Any] = []
    astream_infer = Pipeline.astream_infer

    def recorded(self: Pipeline, *args: Any, **options: Any) -> Any:
        clients.append(current_client.get())
        return astream_infer(self, *args, **options)

    monkeypatch.setattr(Pipeline, "astream_infer", recorded)
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    with running(pipe, api_keys=("first", "second")) as server:
        for key in ("first", "first", "second"):
            header = f"\r\nauthorization: Bearer {key}\r\n\r\n".encode()
            request = post(chat_body()).replace(b"\r\n\r\n", header, 1)
            assert send_and_read(server, request)[0] == 200
    assert clients[0] == clients[1] != clients[2]
