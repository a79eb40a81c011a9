from __future__ import annotations

from collections.abc import Iterator

import pytest
from server.conftest import DEMO, running
from server.wire import ask, connect, exchange, post, read_until

import vlcore
from vlcore.server.serving import Server


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    with running(pipe, header_timeout_s=0.3) as server:
        yield server


@pytest.mark.parametrize("start", [b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc"])
def test_a_head_that_does_not_come_ends_the_connection(hasty: Server, start: bytes) -> None:
    with connect(hasty) as connection:
        connection.sendall(start)
        assert connection.recv(1) == b""


def test_the_next_head_on_a_kept_connection_must_come_in_time_too(hasty: Server) -> None:
    with connect(hasty) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"200 OK" in read_until(connection, b'"ok"}')
        connection.sendall(b"GET /health")
        assert connection.recv(1) == b""


def test_an_answer_may_take_longer_than_a_head(hasty: Server) -> None:
    assert exchange(hasty, post(ask(max_tokens=200, ignore_eos=True)))[0] == 200


def test_a_flood_of_headers_is_refused(hasty: Server) -> None:
    flood = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 32_768 + b"\r\n\r\n"
    assert exchange(hasty, flood)[0] in (400, 431)
