"""A raw HTTP client: it can stop in the middle of a request, never read, or disconnect."""

from __future__ import annotations

import json
import socket
from typing import Any

from waits import TIMEOUT_S

from vlcore.server.serving import Server

LONG: dict[str, Any] = {"max_tokens": 100_000, "ignore_eos": True, "temperature": 0}
"""As many tokens as the context holds: with the engine held, a completion without an end."""


def chat_body(**options: Any) -> bytes:
    """Return the body of a chat request."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Describe it."}]}
    return json.dumps(body | {"max_tokens": 4, "temperature": 0} | options).encode()


def post(body: bytes, length: int | None = None) -> bytes:
    """Return a chat request; its Content-Length may claim more than the body has."""
    length = len(body) if length is None else length
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\n" + f"content-length: {length}\r\n\r\n".encode() + body
    )


def closing(request: bytes) -> bytes:
    """Return a request that asks the server to close the connection after its response."""
    return request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)


def connect(server: Server) -> socket.socket:
    """Open a connection; a read that times out fails the test."""
    return socket.create_connection(server.address, timeout=TIMEOUT_S)


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Read until a mark is received, or the connection ends."""
    received = b""
    while mark not in received and (data := connection.recv(65536)):
        received += data
    return received


def read_all(connection: socket.socket) -> bytes:
    """Read to the end of the connection."""
    return read_until(connection, b"a mark that no response contains")


def send_and_read(server: Server, request: bytes) -> tuple[int, str]:
    """Send a request over a new connection; return the status and all received bytes."""
    with connect(server) as connection:
        connection.sendall(closing(request))
        received = read_all(connection).decode()
    return int(received.split(" ", 2)[1]), received


def is_write_paused(server: Server) -> bool:
    """Return whether every buffer between the server and a client that does not read is full."""
    connections: list[Any] = list(server.server_state.connections)
    flows = [connection.flow for connection in connections]  # None while one is being accepted
    return any(flow is not None and flow.write_paused for flow in flows)


def metric(server: Server, name: str) -> float:
    """Return one of the server's metrics; 0 if it has not been counted yet."""
    _, text = send_and_read(server, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else 0.0


def outcomes(server: Server, outcome: str) -> float:
    """Return the number of requests with an outcome."""
    return metric(server, f'vlcore_requests_total{{outcome="{outcome}"}}')
