"""HTTP over one connection, within bounds on its time, its chunks and its number."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlcore.server.connections import Connections, client_address
from vlcore.server.errors import ApiError, head_too_large_error, overloaded_error
from vlcore.server.pacing import Pacer

ABORT = "vlcore.abort"
"""Key of a request's scope: a function that ends the connection without flushing its buffer."""
_MAX_EVENTS = 64
"""Maximum number of h11's events that are handled without returning to the event loop."""
_MAX_SMALL_CHUNKS = 1024
_MIN_MEAN_CHUNK_BYTES = 32
"""A body of more than so many chunks that are smaller in the mean is refused: parsing a chunk
costs far more than sending it."""
_LINGER_S = 1.0
_MAX_LINGER_BYTES = 64 * 1024**2
"""After a response to an unread request, time and bytes within which the rest is discarded. A
connection that is closed with unread bytes is reset, and the client may not see the response."""

_MIN_PROBE_S, _MAX_PROBE_S = 0.05, 5.0
"""Times between interim responses to a client that has closed its sending side."""


class TimedProtocol(H11Protocol):
    """uvicorn's h11 protocol, with bounds that one connection cannot exceed.

    uvicorn closes a connection that is idle after a response, but waits forever for a first
    request, for the rest of a head that has begun, and for a client that does not read.
    """

    conn: _Connection
    open_connections: Connections
    pacer: Pacer
    header_timeout_s = 10.0
    write_timeout_s = 30.0
    max_head_bytes = 32 * 1024
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None
    _probe_timer: asyncio.TimerHandle | None = None
    is_interrupted = False
    """Whether events are left to handle in a later iteration of the event loop."""
    _num_discarded = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _Connection(h11.SERVER, self.max_head_bytes)
        self.waits_since = 0.0
        """Time since which the connection has had no complete request."""

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first head, or refuse a connection above the bound."""
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        self.waits_since = time.monotonic()
        if self.open_connections.admit(self):
            self._start_head_timer()
        elif self.open_connections.refuse(self):
            self._write_error(overloaded_error("the server has too many connections"))
            self._close_when_read()
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, or discard them if the connection is about to be closed."""
        if self.is_lingering:
            self._num_discarded += len(data)
            if self._num_discarded > _MAX_LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)

    def handle_events(self) -> None:
        """Handle h11's events when it is the client's turn; nothing more is read until then."""
        if self.is_interrupted or self.transport.is_closing():
            return
        if not self.pacer.call(client_address(self.client), self._handle_some):
            self.is_interrupted = True
            self.transport.pause_reading()

    def _handle_some(self) -> None:
        """Handle h11's events, and return to the event loop after so many."""
        was_interrupted, self.is_interrupted = self.is_interrupted, False
        if self.transport.is_closing():
            return
        self.conn.num_events = 0
        super().handle_events()
        if self.is_responding:
            self.cycle.scope[ABORT] = self.transport.abort  # type: ignore[literal-required]
            self._stop_head_timer()
        elif self._head_timer is None:
            self._start_head_timer()
        self.is_interrupted = (
            self.conn.num_events >= _MAX_EVENTS and not self.transport.is_closing()
        )
        if self.is_interrupted:
            self.transport.pause_reading()
            self.pacer.call_later(client_address(self.client), self._handle_some)
            return
        if was_interrupted and not self.flow.read_paused:
            self.transport.resume_reading()
        self._close_if_half_closed()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.waits_since = time.monotonic()
        super().on_response_complete()
        self._close_if_half_closed()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers, and leave nothing to the garbage collector, which stops all threads."""
        timers = (self._head_timer, self._write_timer, self._linger_timer, self._probe_timer)
        for timer in timers:
            if timer is not None:
                timer.cancel()
        self.open_connections.remove(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.transport.detach()  # type: ignore[attr-defined]

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a client that has closed its sending side and waits.

        A client that has disconnected sends the same. Interim responses tell them apart: they make
        the system of one that has disconnected reset the connection, and others ignore them.

        Returns:
            Whether the connection stays open.
        """
        if self._probe_timer is not None:
            return True
        waits = (
            self.is_responding
            and not self.cycle.more_body
            and not self.cycle.response_started
            and self.conn.their_http_version == b"1.1"  # 1.0 has no interim responses
        )
        if waits and not self.transport.is_closing():
            self._probe_later(_MIN_PROBE_S)
        return self._probe_timer is not None

    def pause_writing(self) -> None:
        """Give the client ``write_timeout_s`` to read."""
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        """Stop the timer: the client reads."""
        if self._write_timer is not None and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse bytes that are not valid HTTP, or a head that is too large."""
        is_in_body = self.is_responding
        if is_in_body:
            self.cycle.disconnected = True  # h11 can send nothing more for this request
            self.cycle.message_event.set()
        is_too_large = not is_in_body and len(self.conn.trailing_data[0]) > self.max_head_bytes
        self._write_error(
            head_too_large_error(self.max_head_bytes)
            if is_too_large
            else ApiError(400, "invalid_http", "this is not a valid HTTP request")
        )
        self._close_when_read()

    @property
    def is_responding(self) -> bool:
        """Whether a request is being handled."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_waiting(self) -> bool:
        """Whether the head or the body of a request is incomplete."""
        return not self.is_responding or self.cycle.more_body

    @property
    def is_lingering(self) -> bool:
        """Whether the connection is closed once the client has read the response."""
        return self._linger_timer is not None

    def close(self) -> None:
        """Close the connection after what is written; discard what the client still sends."""
        if self.is_lingering or self.transport.is_closing():
            return
        if self.conn.their_state in (h11.SEND_BODY, h11.ERROR):
            self._close_when_read()
        else:
            self._close_transport()

    def _write_error(self, error: ApiError) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return  # a response has begun
        response = error.response()
        response.headers["connection"] = "close"
        head = h11.Response(
            status_code=error.status,
            headers=[*self.server_state.default_headers, *response.raw_headers],
        )
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _close_if_half_closed(self) -> None:
        """Close the connection of a client that has all responses and sends no further request."""
        if self._probe_timer is not None and not self.is_responding and not self.is_interrupted:
            self._close_transport()

    def _close_when_read(self) -> None:
        if self.is_lingering or self.transport.is_closing():
            return
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self._linger_timer = self.loop.call_later(_LINGER_S, self._close_transport)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.is_interrupted = self.flow.read_paused = False
        self.transport.resume_reading()

    def _close_transport(self) -> None:
        self.transport.close_now()  # type: ignore[attr-defined]
        if self.transport.get_write_buffer_size():
            self._start_write_timer()

    def _probe_later(self, delay_s: float) -> None:
        self._probe_timer = self.loop.call_later(delay_s, self._probe, delay_s)

    def _probe(self, delay_s: float) -> None:
        """Send an interim response; a later one fails if the first was answered with a reset."""
        if self.transport.is_closing():
            return
        if self.is_responding and not self.cycle.response_started:
            interim = h11.InformationalResponse(status_code=102, headers=[], reason="Processing")
            self.transport.write(self.conn.send(interim))
        self._probe_later(min(2 * delay_s, _MAX_PROBE_S))

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.header_timeout_s, self._time_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _time_out(self) -> None:
        self._head_timer = None
        if not self.is_responding:
            self._close_transport()

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: a request to upgrade is answered as if it did not ask for it."""


class _Transport:
    """The transport of a connection, which closes and reads as its protocol decides."""

    def __init__(self, transport: asyncio.Transport, protocol: TimedProtocol) -> None:
        self._transport = transport
        self._protocol: TimedProtocol | None = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def detach(self) -> None:
        """Forget the protocol, which refers to this transport, after the connection is lost."""
        self._protocol = None

    def resume_reading(self) -> None:
        if self._protocol is not None and not self._protocol.is_interrupted:
            self._transport.resume_reading()

    def close(self) -> None:
        if self._protocol is not None:
            self._protocol.close()

    def close_now(self) -> None:
        self._transport.close()

    def is_closing(self) -> bool:
        is_lingering = self._protocol is not None and self._protocol.is_lingering
        return self._transport.is_closing() or is_lingering


class _Connection(h11.Connection):
    """Refuses requests that h11 accepts and a server should not."""

    num_events = 0
    _num_chunks = 0
    _num_chunk_bytes = 0

    def next_event(self) -> Any:
        if self.num_events >= _MAX_EVENTS:
            return h11.NEED_DATA
        event = super().next_event()
        self.num_events += 1
        if isinstance(event, h11.Request):
            self._num_chunks = self._num_chunk_bytes = 0
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                # RFC 9112, section 6.1: an attempt at request smuggling.
                self._refuse("a request must not have both Content-Length and Transfer-Encoding")
        elif isinstance(event, h11.Data) and event.chunk_start:
            self._num_chunks += 1
            self._num_chunk_bytes += len(event.data)
            if (
                self._num_chunks > _MAX_SMALL_CHUNKS
                and self._num_chunk_bytes < self._num_chunks * _MIN_MEAN_CHUNK_BYTES
            ):
                self._refuse("the chunks of the body are too small")
        return event

    def _refuse(self, message: str) -> None:
        self._cstate.process_error(self.their_role)
        raise h11.RemoteProtocolError(message)
