"""HTTP over one connection, with a time limit on the head of each request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlcore.server.errors import ApiError, head_too_large_error

ABORT = "vlcore.abort"
"""Key of a request's scope: a function that ends the connection without flushing its buffer."""


class TimedProtocol(H11Protocol):
    """uvicorn's h11 protocol, with a bound on the time that the head of a request may take.

    uvicorn closes a connection that is idle after a response, but waits forever for a first request
    and for the rest of a head that has begun.
    """

    header_timeout_s = 10.0
    max_head_bytes = 32 * 1024
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first head."""
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Process received bytes; the first bytes of a further head start its timer."""
        super().data_received(data)
        if self._is_responding():
            self._stop_timer()
        elif self._head_timer is None:
            self._start_timer()

    def handle_events(self) -> None:
        """Process h11's events, and put ``ABORT`` into the scope of each request."""
        super().handle_events()
        if self._is_responding():
            self.cycle.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse a head that is invalid or too large, in the shape of every other error."""
        is_too_large = len(self.conn.trailing_data[0]) > self.max_head_bytes
        error = (
            head_too_large_error(self.max_head_bytes)
            if is_too_large
            else ApiError(400, "invalid_http", "this is not a valid HTTP request")
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

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.header_timeout_s, self._time_out)

    def _time_out(self) -> None:
        self._head_timer = None
        if not self._is_responding() and not self.transport.is_closing():
            self.transport.close()

    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
