from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from server.conftest import DEMO, running
from server.wire import (
    LONG,
    ask,
    connect,
    exchange,
    metric,
    outcomes,
    post,
    read_until,
    wait_for,
)

import vlcore
from vlcore.pipeline import Pipeline
from vlcore.server.serving import Server


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def hasty(pipe: Pipeline) -> Iterator[Server]:
    with running(
        pipe, deadline_s=2.0, body_timeout_s=0.3, header_timeout_s=0.3, max_requests=3
    ) as server:
        yield server


def is_idle(pipe: Pipeline, server: Server) -> bool:
    engine: Any = pipe.engine
    return not engine._batch.sequences and metric(server, "vlcore_active_requests") == 0


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_away_frees_its_row_and_its_place(
    hasty: Server, pipe: Pipeline, streams: bool
) -> None:
    gone, engine = outcomes(hasty, "disconnected"), pipe.engine
    with connect(hasty) as connection:
        connection.sendall(post(ask(stream=streams, **LONG)))
        if streams:
            read_until(connection, b"data: ")
        wait_for(lambda: engine._batch.sequences)  # type: ignore[attr-defined]
    left = time.monotonic()
    wait_for(lambda: is_idle(pipe, hasty))
    assert time.monotonic() - left < 1  # before the deadline would have
    wait_for(lambda: outcomes(hasty, "disconnected") == gone + 1)


def test_a_client_that_goes_away_in_mid_body_frees_its_place(hasty: Server, pipe: Pipeline) -> None:
    gone = outcomes(hasty, "disconnected")
    with connect(hasty) as connection:
        connection.sendall(post(b'{"model"', length=1000))
        wait_for(lambda: metric(hasty, "vlcore_active_requests") == 1)
    wait_for(lambda: outcomes(hasty, "disconnected") == gone + 1)
    assert is_idle(pipe, hasty)


def test_the_deadline_has_its_status_before_the_first_piece(hasty: Server, pipe: Pipeline) -> None:
    status, came = exchange(hasty, post(ask(**LONG)))
    assert status == 504
    assert "deadline_exceeded" in came
    wait_for(lambda: is_idle(pipe, hasty))


def test_the_deadline_is_an_event_after_the_first_piece(hasty: Server, pipe: Pipeline) -> None:
    status, came = exchange(hasty, post(ask(stream=True, **LONG)))
    assert status == 200
    assert '"code":"deadline_exceeded"' in came
    assert "[DONE]" not in came
    wait_for(lambda: is_idle(pipe, hasty))


def test_a_client_that_never_reads_is_cut_off_at_the_deadline(
    hasty: Server, pipe: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as reader, caplog.at_level(logging.WARNING):
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.connect(hasty.address)
        # Logprobs make the events long, so that the buffers between are full in time.
        many = ask(stream=True, logprobs=True, top_logprobs=20, **LONG)
        reader.sendall(post(many))
        wait_for(lambda: pipe.engine._batch.sequences)  # type: ignore[attr-defined]
        assert exchange(hasty, post(ask()))[0] == 200  # nobody else is held up
        wait_for(lambda: is_idle(pipe, hasty))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_slow_body_is_told_so(hasty: Server) -> None:
    status, came = exchange(hasty, post(b'{"model"', length=1000))
    assert status == 408
    assert "body_timeout" in came


def test_a_bad_request_leaves_the_good_ones_beside_it_alone(hasty: Server) -> None:
    alone = exchange(hasty, post(ask(max_tokens=24, ignore_eos=True)))[1]
    with connect(hasty) as connection:
        connection.sendall(post(ask(max_tokens=24, ignore_eos=True)))
        for body in (b"{", ask(model="another"), ask(temperature=9)):
            assert exchange(hasty, post(body))[0] in (400, 404)
        came = read_until(connection, b'"cached_tokens":0}}}').decode()
    said = '"message":{'
    assert came.partition(said)[2].partition("}")[0] == alone.partition(said)[2].partition("}")[0]
