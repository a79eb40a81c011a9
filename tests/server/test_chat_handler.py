from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from held_engine import held
from loop_clock import LoopClock
from server.conftest import DEMO, clock_of, running
from server.wire import (
    LONG,
    TIMEOUT_S,
    ask,
    closing,
    connect,
    exchange,
    metric,
    outcomes,
    post,
    read_all,
    read_until,
    wait_for,
)

import vlcore
from vlcore.inference.pipeline import Pipeline
from vlcore.media.policy import ImageAccess
from vlcore.server.serving import Server

DEADLINE_S = 10_000.0
BODY_TIMEOUT_S = 5000.0


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def hasty(pipe: Pipeline) -> Iterator[Server]:
    """A server with limits, whose times only pass where a test moves its clock."""
    limits = {"deadline_s": DEADLINE_S, "body_timeout_s": BODY_TIMEOUT_S, "max_requests": 3}
    with running(pipe, **limits) as server:
        yield server


@pytest.fixture(scope="module")
def clock(pipe: Pipeline, hasty: Server) -> LoopClock:
    """The clock of that server."""
    return clock_of(pipe)


@pytest.fixture(scope="module")
def narrow() -> Iterator[tuple[Pipeline, Server]]:
    """A server whose engine answers one at a time, and that fetches from this machine."""
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
    engine: Any = pipe.engine
    return not engine._batch.sequences and metric(server, "vlcore_active_requests") == 0


def has_to_wait_for_a_client(server: Server) -> bool:
    """Whether what a client does not read fills every buffer between the server and it."""
    connections: list[Any] = list(server.server_state.connections)
    return any(connection.flow.write_paused for connection in connections)


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_frees_its_row_and_its_place(
    hasty: Server, pipe: Pipeline, streams: bool
) -> None:
    gone = outcomes(hasty, "disconnected")
    with held(pipe.engine, 4) as hold:
        with connect(hasty) as connection:
            connection.sendall(post(ask(stream=streams, **LONG)))
            if streams:
                read_until(connection, b"data: ")
            hold.wait_until_held()
        wait_for(lambda: outcomes(hasty, "disconnected") == gone + 1)
        started = hold.num_started
        hold.release()
        wait_for(lambda: is_idle(pipe, hasty))
        assert hold.num_started == started


def test_a_client_that_goes_away_while_it_waits_for_a_row_waits_no_more(
    narrow: tuple[Pipeline, Server],
) -> None:
    pipe, server = narrow
    with held(pipe.engine, 4), connect(server) as first:
        first.sendall(post(ask(stream=True, **LONG)))
        read_until(first, b"data: ")
        with connect(server) as second:
            second.sendall(post(ask(**LONG)))
            wait_for(lambda: metric(server, "vlcore_answers_waiting") == 1)
            assert metric(server, "vlcore_answers_running") == 1
        wait_for(lambda: metric(server, "vlcore_answers_waiting") == 0)
        assert metric(server, "vlcore_answers_running") == 1
        wait_for(lambda: metric(server, "vlcore_active_requests") == 1)
    wait_for(lambda: is_idle(pipe, server))


def test_a_client_that_goes_away_ends_the_downloads_of_its_pictures(
    narrow: tuple[Pipeline, Server],
) -> None:
    pipe, server = narrow
    with socket.create_server(("127.0.0.1", 0)) as pictures:
        url = f"http://127.0.0.1:{pictures.getsockname()[1]}/never.png"
        content = [{"type": "image_url", "image_url": {"url": url}}]
        with connect(server) as connection:
            connection.sendall(post(ask(messages=[{"role": "user", "content": content}])))
            pictures.settimeout(TIMEOUT_S)
            download, _ = pictures.accept()
            download.settimeout(TIMEOUT_S)
            assert read_until(download, b"\r\n\r\n").startswith(b"GET /never.png")
        with download:
            assert read_all(download) == b""
    wait_for(lambda: is_idle(pipe, server))


def test_a_body_in_chunks_ends_at_the_limit_too(narrow: tuple[Pipeline, Server]) -> None:
    pipe, server = narrow
    head = post(b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
    chunk = b"1f4\r\n" + b" " * 500 + b"\r\n"
    status, came = exchange(server, head + 5 * chunk)  # and no end
    assert status == 413
    assert "max_body_bytes" in came
    assert is_idle(pipe, server)


def test_one_more_request_than_there_are_places_is_told_to_come_again(
    hasty: Server, pipe: Pipeline
) -> None:
    with held(pipe.engine) as hold, ExitStack() as stack:
        running = [stack.enter_context(connect(hasty)) for _ in range(3)]
        for connection in running:
            connection.sendall(post(ask(stream=True, **LONG)))
            hold.allow(3)
            read_until(connection, b"data: ")
        status, came = exchange(hasty, post(ask()))
        assert status == 429
        assert "\r\nretry-after: 1\r\n" in came.lower()
        assert "max_requests" in came
        running[0].close()
        wait_for(lambda: metric(hasty, "vlcore_active_requests") == 2)
        hold.release()
        assert exchange(hasty, post(ask()))[0] == 200
    wait_for(lambda: is_idle(pipe, hasty))


def test_a_client_that_goes_away_in_mid_body_frees_its_place(hasty: Server, pipe: Pipeline) -> None:
    gone = outcomes(hasty, "disconnected")
    with connect(hasty) as connection:
        connection.sendall(post(b'{"model"', length=1000))
        wait_for(lambda: metric(hasty, "vlcore_active_requests") == 1)
    wait_for(lambda: outcomes(hasty, "disconnected") == gone + 1)
    assert is_idle(pipe, hasty)


@pytest.mark.parametrize("streams", [True, False])
def test_the_deadline_has_its_status_before_the_first_piece(
    hasty: Server, pipe: Pipeline, clock: LoopClock, streams: bool
) -> None:
    with held(pipe.engine) as hold, connect(hasty) as connection:
        connection.sendall(post(ask(stream=streams, **LONG)))
        hold.wait_until_held()
        clock.advance(DEADLINE_S)
        came = read_all(connection)
    assert came.startswith(b"HTTP/1.1 504 ")
    assert b"deadline_exceeded" in came
    wait_for(lambda: is_idle(pipe, hasty))


def test_the_deadline_is_an_event_after_the_first_piece(
    hasty: Server, pipe: Pipeline, clock: LoopClock
) -> None:
    with held(pipe.engine, 4), connect(hasty) as connection:
        connection.sendall(closing(post(ask(stream=True, **LONG))))
        came = read_until(connection, b"data: ")
        clock.advance(DEADLINE_S)
        came += read_all(connection)
    assert came.startswith(b"HTTP/1.1 200 ")
    assert b'"code":"deadline_exceeded"' in came
    assert b"[DONE]" not in came
    wait_for(lambda: is_idle(pipe, hasty))


def test_a_client_that_never_reads_is_cut_off_at_the_deadline(
    hasty: Server, pipe: Pipeline, clock: LoopClock, caplog: pytest.LogCaptureFixture
) -> None:
    for listening in hasty.servers[0].sockets:  # what lies between the two is soon full
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    with socket.socket() as reader, caplog.at_level(logging.WARNING):
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.connect(hasty.address)
        # Many long events, so that the server's own buffer is full in time too.
        many = LONG | {"temperature": 1, "n": 4, "logprobs": True, "top_logprobs": 20}
        reader.sendall(post(ask(stream=True, **many)))
        wait_for(lambda: has_to_wait_for_a_client(hasty))
        assert exchange(hasty, post(ask()))[0] == 200  # nobody else is held up
        clock.advance(DEADLINE_S)
        wait_for(lambda: is_idle(pipe, hasty))
        wait_for(lambda: "a client did not read its answer in time" in caplog.messages)
        came = b""
        with suppress(ConnectionResetError):
            came = read_until(reader, b"[DONE]")
    assert b"deadline_exceeded" not in came
    assert not came.endswith(b"0\r\n\r\n")  # which would be the end of an answer
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_slow_body_is_told_so(hasty: Server, clock: LoopClock) -> None:
    with connect(hasty) as connection:
        connection.sendall(post(b'{"model"', length=1000))
        wait_for(lambda: metric(hasty, "vlcore_active_requests") == 1)
        clock.advance(BODY_TIMEOUT_S)
        came = read_all(connection)
    assert came.startswith(b"HTTP/1.1 408 ")
    assert b"body_timeout" in came


def test_no_task_is_left_by_good_bad_or_broken_requests(hasty: Server, pipe: Pipeline) -> None:
    async def num_tasks() -> int:
        return len(asyncio.all_tasks())

    wait_for(lambda: is_idle(pipe, hasty))
    before = pipe.run(num_tasks())
    for body in (ask(), ask(stream=True), b"{", ask(temperature=9)):
        exchange(hasty, post(body))
    for body in (ask(), ask(stream=True), b"{", ask(temperature=9), ask(**LONG)):
        with connect(hasty) as connection:
            connection.sendall(post(body)[:-3])
        with connect(hasty) as connection:
            connection.sendall(post(body))
    wait_for(lambda: is_idle(pipe, hasty))
    wait_for(lambda: pipe.run(num_tasks()) <= before)


def test_a_bad_request_leaves_the_good_ones_beside_it_alone(hasty: Server) -> None:
    alone = exchange(hasty, post(ask(max_tokens=24, ignore_eos=True)))[1]
    with connect(hasty) as connection:
        connection.sendall(post(ask(max_tokens=24, ignore_eos=True)))
        for body in (b"{", ask(model="another"), ask(temperature=9)):
            assert exchange(hasty, post(body))[0] in (400, 404)
        came = read_until(connection, b'"cached_tokens":0}}}').decode()
    said = '"message":{'
    assert came.partition(said)[2].partition("}")[0] == alone.partition(said)[2].partition("}")[0]
