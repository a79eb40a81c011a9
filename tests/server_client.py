"""Requests to a running server, byte by byte."""

from __future__ import annotations

import base64
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

IMAGES = Path(__file__).parents[1] / "demo" / "images"


@dataclass(frozen=True)
class Reply:
    """What came back until the server closed the connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def data_url(name: str) -> str:
    """A picture of the demo."""
    return f"data:image/png;base64,{base64.b64encode((IMAGES / name).read_bytes()).decode()}"


def picture(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(name)}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def chat(*content: Any, **options: Any) -> dict[str, Any]:
    """The body of a request with one message, which is answered greedily."""
    messages = [{"role": "user", "content": list(content)}]
    return {"model": "tiny", "messages": messages, "temperature": 0} | options


GOOD = chat(picture("circle_and_square.png"), text("What colour is the circle?"))
GOOD_ANSWER = "red"


def send(url: str, raw: bytes) -> Reply:
    """Send bytes on a connection of their own, and read until the server closes it."""
    address = urlsplit(url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 80), timeout=20) as connection:
        received = bytearray()
        try:
            connection.sendall(raw)
            while piece := connection.recv(65536):
                received += piece
        except (ConnectionResetError, BrokenPipeError):  # refused before all was read
            while not received.endswith(b"}"):
                piece = connection.recv(65536)
                assert piece, "the connection was reset without an answer"
                received += piece
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
    """A request as bytes; a header that is ``""`` is left out."""
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
    """A chat request as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", "/v1/chat/completions", data, headers)
