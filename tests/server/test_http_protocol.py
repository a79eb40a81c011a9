from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Iterator
from itertools import count
from weakref import ref

import pytest
from held_engine import held
from loop_clock import LoopClock
from server.conftest import DEMO, clock_of, running
from server.wire import (
    chat_body,
    closing,
    connect,
    is_write_paused,
    post,
    read_all,
    read_until,
    send_and_read,
)
from waits import wait_for

import vlcore
from vlcore.inference.pipeline import Pipeline
from vlcore.server.http_protocol import TimedProtocol
from vlcore.server.pacing import Pacer
from vlcore.server.serving import Server

HEADER_TIMEOUT_S = 5000.0
WRITE_TIMEOUT_S = 2000.0
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def server(pipe: Pipeline) -> Iterator[Server]:
    """A server whose time limit passes only when a test moves its clock."""
    limits = {"header_timeout_s": HEADER_TIMEOUT_S, "deadline_s": 2 * HEADER_TIMEOUT_S}
    limits["write_timeout_s"] = WRITE_TIMEOUT_S
    with running(pipe, **limits) as server:
        yield server


@pytest.fixture(scope="module")
def clock(pipe: Pipeline, server: Server) -> LoopClock:
    """The clock of the server."""
    return clock_of(pipe)


def received(server: Server) -> bytes:
    """Return the received part of the head on the only connection."""
    (connection,) = server.server_state.connections
    data: bytes = connection.conn.trailing_data[0]  # type: ignore[union-attr]
    return data


@pytest.mark.parametrize("start", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc"])
def test_an_incomplete_head_ends_the_connection(
    server: Server, clock: LoopClock, start: bytes
) -> None:
    wait_for(lambda: not server.server_state.connections)
    with connect(server) as connection:
        connection.sendall(start)
        wait_for(lambda: server.server_state.connections and received(server) == start)
        clock.advance(HEADER_TIMEOUT_S)
        assert read_all(connection) == b""


def test_the_next_head_on_a_kept_connection_has_the_same_time_limit(
    server: Server, clock: LoopClock
) -> None:
    wait_for(lambda: not server.server_state.connections)
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"200 OK" in read_until(connection, b'"ok"}')
        connection.sendall(b"GET /health")
        wait_for(lambda: received(server) == b"GET /health")
        clock.advance(HEADER_TIMEOUT_S)
        assert read_all(connection) == b""


def test_a_response_may_take_longer_than_a_head(
    server: Server, pipe: Pipeline, clock: LoopClock
) -> None:
    with held(pipe.engine, 4) as hold, connect(server) as connection:
        connection.sendall(closing(post(chat_body(max_tokens=24, ignore_eos=True))))
        hold.wait_until_held()
        clock.advance(HEADER_TIMEOUT_S)
        hold.release()
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_a_flood_of_headers_is_refused(server: Server) -> None:
    flood = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 32_768 + b"\r\n\r\n"
    assert send_and_read(server, flood)[0] in (400, 431)


def test_many_small_chunks_are_refused(server: Server) -> None:
    head = post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    status, received = send_and_read(server, head + b"1\r\n \r\n" * 2000)
    assert status == 400
    assert "invalid_http" in received


def test_few_small_chunks_are_accepted(server: Server) -> None:
    body = chat_body()
    chunks = b"".join(b"1\r\n" + body[i : i + 1] + b"\r\n" for i in range(len(body)))
    head = post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    assert send_and_read(server, head + chunks + b"0\r\n\r\n")[0] == 200


def test_many_events_do_not_hold_the_event_loop(server: Server) -> None:
    """No iteration of the event loop handles more than so many of h11's events."""
    counts: list[int] = []
    handle_some = TimedProtocol._handle_some

    def counted(self: TimedProtocol) -> None:
        handle_some(self)
        counts.append(self.conn.num_events)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimedProtocol, "_handle_some", counted)
        head = post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
        send_and_read(server, head + b"1\r\n \r\n" * 900 + b"0\r\n\r\n")
    assert len(counts) > 3
    assert max(counts) <= 64


def test_a_client_whose_turn_comes_later_receives_all_responses(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every event takes all the time of an iteration, so all but the first one wait."""
    monkeypatch.setattr(server.config.http, "pacer", Pacer(map(float, count()).__next__))
    with connect(server) as first, connect(server) as second:
        first.sendall(HEALTH * 20)
        second.sendall(HEALTH * 19 + closing(HEALTH))
        first.shutdown(socket.SHUT_WR)
        assert read_all(second).count(b" 200 OK") == 20
        assert read_all(first).count(b" 200 OK") == 20


def test_a_closed_connection_leaves_nothing_to_the_garbage_collector(server: Server) -> None:
    wait_for(lambda: not server.server_state.connections)
    gc.collect()
    gc.disable()
    try:
        with connect(server) as connection:
            connection.sendall(closing(post(chat_body())))
            wait_for(lambda: len(server.server_state.connections) == 1)
            protocol = ref(next(iter(server.server_state.connections)))
            assert b"HTTP/1.1 " in read_all(connection)
        wait_for(lambda: protocol() is None)
    finally:
        gc.enable()


def test_a_damaged_chunk_after_a_response_has_begun_logs_no_traceback(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server) as connection:
        connection.sendall(
            b"GET /health HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
            b"ZZ\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        )
        assert read_all(connection).startswith(b"HTTP/1.1 ")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("path", ["/docs", "/metrics", "/openapi.json", "/"])
def test_a_client_that_never_reads_is_disconnected(
    server: Server, clock: LoopClock, path: str
) -> None:
    wait_for(lambda: not server.server_state.connections)
    for listening in server.servers[0].sockets:  # the buffers between the two fill up soon
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.connect(server.address)
        reader.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode() * 60)
        wait_for(lambda: is_write_paused(server))
        clock.advance(WRITE_TIMEOUT_S)
        wait_for(lambda: not server.server_state.connections)


def test_a_connection_above_the_bound_is_refused_with_an_error() -> None:
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    with running(pipe, max_connections=2) as server, connect(server), connect(server):
        wait_for(lambda: len(server.server_state.connections) == 2)
        with connect(server) as third:
            third.sendall(HEALTH)
            received = read_all(third)
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in received.lower()
        assert b'"code":"overloaded"' in received


def test_an_address_at_its_bound_loses_the_connection_that_waits_longest() -> None:
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    with running(pipe, max_connections_per_client=2) as server, connect(server) as first:
        wait_for(lambda: len(server.server_state.connections) == 1)
        with connect(server):
            wait_for(lambda: len(server.server_state.connections) == 2)
            assert send_and_read(server, HEALTH)[0] == 200
            assert read_all(first) == b""


def test_an_upgrade_is_ignored(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = HEALTH.replace(b"\r\n\r\n", b"\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(upgrade)
        assert b"200 OK" in read_until(connection, b'"ok"}')
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]
