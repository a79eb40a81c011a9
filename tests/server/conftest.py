"""Fixtures: a server of the demo model on a free port, in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from loop_clock import LoopClock
from waits import TIMEOUT_S, wait_for

import vlcore
from vlcore.server.serving import Server
from vlcore.server.settings import ServerSettings

DEMO = Path(__file__).parents[2] / "demo"


@contextmanager
def running(pipe: vlcore.Pipeline, **settings: Any) -> Iterator[Server]:
    """Serve a pipeline; it is closed together with the server."""
    options: dict[str, Any] = {"model_name": "tiny", "port": 0} | settings
    server = Server(pipe, ServerSettings(**options))
    thread = threading.Thread(target=lambda: pipe.run(server.serve()), name="server")
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        yield server
    finally:
        server.stop()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "the server did not stop"
        pipe.close()


def clock_of(pipe: vlcore.Pipeline) -> LoopClock:
    """Return a clock with which a test moves the time of a pipeline's event loop."""

    async def running_loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    return LoopClock(pipe.run(running_loop()))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of the demo model."""
    with running(vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    """The base URL of the server."""
    host, port = server.address
    return f"http://{host}:{port}"


@pytest.fixture(scope="module")
def keyed_url() -> Iterator[str]:
    """The base URL of a server that requires one of the keys ``first`` and ``second``."""
    pipe = vlcore.pipeline(DEMO / "tiny-llava", device="cpu", dtype="float32")
    with running(pipe, api_keys=("first", "second")) as server:
        host, port = server.address
        yield f"http://{host}:{port}"
