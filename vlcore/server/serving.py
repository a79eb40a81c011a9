"""Runs the HTTP server until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from vlcore.errors import EngineClosedError, OptionError
from vlcore.inference.pipeline import Pipeline
from vlcore.server.admission import Admission
from vlcore.server.app import create_app
from vlcore.server.connections import Connections
from vlcore.server.http_protocol import TimedProtocol
from vlcore.server.middleware import ADDRESSES
from vlcore.server.pacing import Pacer
from vlcore.server.settings import ServerSettings, within_engine_limits

logger = logging.getLogger(__name__)

_BACKLOG = 2048
"""Maximum number of connections that wait to be accepted."""
_MAX_ACCEPTED = 64
"""Maximum number of connections that are accepted without returning to the event loop."""
_LAST_RESPONSE_S = 2.0
"""Time that cancelled requests have to send their error."""
_SWITCH_INTERVAL_S = 0.001
"""Time after which a thread lets another one run that waits for Python's lock."""
_FORCED_EXIT_S = 5.0
"""Time that a second signal leaves to a clean end of the process."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """A server of one model.

    A first signal stops it: running requests have ``shutdown_timeout_s`` seconds to finish. In this
    time the server still listens, refuses new chat requests, and ``/ready`` returns 503, so that a
    load balancer can see it. A second signal ends it at once. It also stops when the engine fails.

    Args:
        pipeline: The model. The server runs best on its event loop (``Pipeline.run``).
        settings: The server's settings.
    """

    def __init__(self, pipeline: Pipeline, settings: ServerSettings) -> None:
        self.failure: str | None = None
        """Why the engine can serve no further requests, if that has stopped the server."""
        self._engine = pipeline.engine
        settings = within_engine_limits(settings, pipeline.engine)
        self.sampling_defaults = settings.sampling_defaults
        self._admission = Admission(settings.max_requests)
        self._shutdown_timeout_s = settings.shutdown_timeout_s
        protocol = type(
            "Protocol",
            (TimedProtocol,),
            {
                "open_connections": Connections(settings),
                "pacer": Pacer(),
                "header_timeout_s": settings.header_timeout_s,
                "write_timeout_s": settings.write_timeout_s,
                "max_head_bytes": settings.max_head_bytes,
            },
        )
        super().__init__(
            uvicorn.Config(
                create_app(pipeline, settings, self._admission),
                host=settings.host,
                port=settings.port,
                http=protocol,
                ws="none",
                lifespan="off",
                access_log=False,
                server_header=False,
                headers=[("x-content-type-options", "nosniff")],
                proxy_headers=False,
                log_config=None,
                backlog=_MAX_ACCEPTED,
            )
        )

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that the server listens on, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return host, port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and let requests know the addresses."""
        await super().startup(sockets)
        listening = [bound for server in self.servers for bound in server.sockets]
        self.lifespan.state[ADDRESSES] = [bound.getsockname()[0] for bound in listening]
        for bound in sockets or ():
            bound.listen(_BACKLOG)  # uvicorn has set it to the number accepted at a time

    async def on_tick(self, counter: int) -> bool:
        """Stop if the engine has failed; called about ten times per second."""
        if self.failure is None and (failure := self._engine.failure):
            logger.error("%s", failure)
            self.failure = failure
            self.stop()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests finish, then close all connections."""
        logger.info("stopping: %d requests are running", self._admission.num_requests)
        try:
            async with asyncio.timeout(self._shutdown_timeout_s):
                while self._admission.num_requests and not self.force_exit:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            logger.warning("%d requests are cancelled", self._admission.num_requests)
        for server in self.servers:
            server.close()
        for bound in sockets or ():
            bound.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for task in self.server_state.tasks:
            task.cancel()
        if tasks := list(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=0.0 if self.force_exit else _LAST_RESPONSE_S)
        await asyncio.sleep(0)  # lets the connections close
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Refuse new requests from now on; on a second signal, end at once.

        uvicorn's own handler raises the signal again at the end, which makes a clean stop look like
        a killed process.
        """
        self.force_exit = self.should_exit
        self.stop()

    def stop(self) -> None:
        """Stop as a first signal does."""
        self._admission.is_stopping = True
        self.should_exit = True


def serve(pipeline: Pipeline, settings: ServerSettings, bound: socket.socket) -> None:
    """Serve a model until the process receives SIGINT or SIGTERM, or the engine fails.

    Args:
        pipeline: The model; closed at the end.
        settings: The server's settings.
        bound: The socket returned by ``bind``.

    Raises:
        EngineClosedError: The engine failed, and can serve no further requests.
    """
    server = Server(pipeline, settings)
    host, port = bound.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    if defaults := server.sampling_defaults:
        values = ", ".join(f"{option} {value:g}" for option, value in defaults.items())
        logger.info("sampling options that requests do not set: %s", values)
    bound.listen(_BACKLOG)  # clients can connect as soon as the address is logged
    logger.info("%s is served at http://%s:%d", settings.model_name, name, port)
    with _stopped_by_signals(server), _frozen_heap(), _short_switch_interval(), pipeline:
        pipeline.run(server.serve([bound]))
    if server.failure is not None:
        raise EngineClosedError(server.failure)


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Exclude the objects of the loaded model and modules from garbage collection.

    A full collection traverses hundreds of thousands of them, which takes a quarter of a second in
    which no thread runs, and none of them is garbage as long as the server runs.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _short_switch_interval() -> Iterator[None]:
    """Let the event loop wait for less time until another thread gives it Python's lock."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[None]:
    """Let signals, which arrive in the main thread, stop a server that runs in another.

    After a second signal the process ends in any case: a thread that decodes an image cannot be
    interrupted.
    """

    def handle(sig: int, frame: FrameType | None) -> None:
        server.handle_exit(sig, frame)
        if server.force_exit:
            watchdog = threading.Timer(_FORCED_EXIT_S, os._exit, (1,))
            watchdog.daemon = True
            watchdog.start()

    handlers = {kind: signal.signal(kind, handle) for kind in _SIGNALS}
    try:
        yield
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


def bind(settings: ServerSettings) -> socket.socket:
    """Bind the server's address; done first, so that no model is loaded in vain.

    Raises:
        OptionError: The address cannot be bound.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            # Connections of a server that ended a minute ago do not block the port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except (OSError, UnicodeError) as error:
        raise OptionError(
            f"{host}:{port} cannot be listened on ({getattr(error, 'strerror', error)}): choose "
            "another --port, or 0 for a free one, and as --host an address of this machine"
        ) from error
    return bound
