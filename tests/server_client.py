"""Requests to a running server, byte by byte."""

from __future__ import annotations

import base64
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from waits import TIMEOUT_S

IMAGES = Path(__file__).parents[1] / "demo" / "images"


@dataclass(frozen=True)
class Reply:
    """A response, read until the server closed the connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def data_url(name: str) -> str:
    """Return an image of the demo as a data URL."""
    return f"data:image/png;base64,{base64.b64encode((IMAGES / name).read_bytes()).decode()}"


def image_part(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(name)}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def chat(*content: Any, **options: Any) -> dict[str, Any]:
    """Return the body of a greedy request with one user message."""
    messages = [{"role": "user", "content": list(content)}]
    return {"model": "tiny", "messages": messages, "temperature": 0} | options


GOOD = chat(image_part("circle_and_square.png"), text_part("What colour is the circle?"))
GOOD_COMPLETION = "red"


def send(url: str, raw: bytes) -> Reply:
    """Send bytes over a new connection, and read until the server closes it."""
    address = urlsplit(url)
    assert address.hostname is not None
    with socket.create_connection(
        (address.hostname, address.port or 80), timeout=TIMEOUT_S
    ) as connection:
        received = bytearray()
        try:
            connection.sendall(raw)
            while data := connection.recv(65536):
                received += data
        except (ConnectionResetError, BrokenPipeError):  # refused before the server read everything
            while not received.endswith(b"}"):
                data = connection.recv(65536)
                assert data, "the connection was reset without a response"
                received += data
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Reply(int(first.split()[1]), headers, body)


def request(
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str | bytes] | None = None,
) -> bytes:
    """Return a request as bytes; a header whose value is ``""`` is left out."""
    fields: dict[str, str | bytes] = {"Host": "127.0.0.1", "Connection": "close"}
    if method == "POST":
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= headers or {}
    head = f"{method} {path} HTTP/1.1\r\n".encode()
    for name, value in fields.items():
        if value != "":
            value = value.encode("latin-1") if isinstance(value, str) else value
            head += name.encode() + b": " + value + b"\r\n"
    return head + b"\r\n" + body


def post(body: object, headers: dict[str, str | bytes] | None = None) -> bytes:
    """Return a chat request as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", "/v1/chat/completions", data, headers)
