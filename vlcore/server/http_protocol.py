"""HTTP over one connection, in which the head of a request must come in time."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlcore.server.errors import ApiError, head_too_large

ABORT = "vlcore.abort"
"""In a request's scope: what ends its connection without a wait for the client to read."""


class TimedProtocol(H11Protocol):
    """uvicorn's protocol on h11, which bounds the bytes of a head, with a bound on its time.

    uvicorn closes a connection that is idle after an answer, but waits without end for a first
    request and for the rest of a head that began.
    """

    header_timeout_s = 10.0
    max_head_bytes = 32 * 1024
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of a new head begin to wait for the rest of it."""
        super().data_received(data)
        if self._is_answering():
            self._stop_timer()
        elif self._head_timer is None:
            self._wait_for_head()

    def handle_events(self) -> None:
        """Tell each request how to end its connection."""
        super().handle_events()
        if self._is_answering():
            self.cycle.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse what is no HTTP, or too much of it, in the shape of every other error."""
        is_too_large = len(self.conn.trailing_data[0]) > self.max_head_bytes
        error = (
            head_too_large(self.max_head_bytes)
            if is_too_large
            else ApiError(400, "invalid_http", "this is no HTTP request")
        )
        response = error.response()
        response.headers["connection"] = "close"
        head = h11.Response(
            status_code=error.status,
            headers=[*self.server_state.default_headers, *response.raw_headers],
        )
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.header_timeout_s, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        if not self._is_answering() and not self.transport.is_closing():
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
