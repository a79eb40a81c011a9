from __future__ import annotations

from collections.abc import Iterator

import pytest
from held_engine import held
from loop_clock import LoopClock
from server.conftest import DEMO, clock_of, running
from server.wire import (
    chat_body,
    closing,
    connect,
    post,
    read_all,
    read_until,
    send_and_read,
)
from waits import wait_for

import vlcore
from vlcore.inference.pipeline import Pipeline
from vlcore.server.serving import Server

HEADER_TIMEOUT_S = 5000.0


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def server(pipe: Pipeline) -> Iterator[Server]:
    """A server whose time limit passes only when a test moves its clock."""
    limits = {"header_timeout_s": HEADER_TIMEOUT_S, "deadline_s": 2 * HEADER_TIMEOUT_S}
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
