"""A client that can do what a good one would not: stop in mid-request, never read, or go away."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

from vlcore.server.serving import Server

LONG: dict[str, Any] = {"max_tokens": 100_000, "ignore_eos": True, "temperature": 0}
"""As many tokens as the context holds: with the engine held, an answer without an end."""
TIMEOUT_S = 120
"""Of a wait that only a failing test waits out."""


def ask(**more: Any) -> bytes:
    """Write the body of a request."""
    question = {"model": "tiny", "messages": [{"role": "user", "content": "Describe it."}]}
    return json.dumps(question | {"max_tokens": 4, "temperature": 0} | more).encode()


def post(body: bytes, length: int | None = None) -> bytes:
    """Write a request, whose head may promise more of a body than comes."""
    length = len(body) if length is None else length
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\n" + f"content-length: {length}\r\n\r\n".encode() + body
    )


def closing(request: bytes) -> bytes:
    """Ask the server to close the connection after its response."""
    return request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)


def connect(server: Server) -> socket.socket:
    """Open a connection; what does not come in time fails the test."""
    return socket.create_connection(server.address, timeout=TIMEOUT_S)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Read up to a mark, or to the end."""
    came = b""
    while mark not in came and (more := connection.recv(65536)):
        came += more
    return came


def read_all(connection: socket.socket) -> bytes:
    """Read to the end of the connection."""
    return read_until(connection, b"nothing ends it but its end")


def exchange(server: Server, request: bytes) -> tuple[int, str]:
    """Send a request over a connection of its own: the status, and all that came."""
    with connect(server) as connection:
        connection.sendall(closing(request))
        came = read_all(connection).decode()
    return int(came.split(" ", 2)[1]), came


def metric(server: Server, name: str) -> float:
    """Read one of the server's metrics; 0 where it has not been counted yet."""
    _, text = exchange(server, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else 0.0


def outcomes(server: Server, outcome: str) -> float:
    """Count the requests that ended in one way."""
    return metric(server, f'vlcore_requests_total{{outcome="{outcome}"}}')


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until it is so."""
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.01)
