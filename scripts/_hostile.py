"""Hostile requests by kind: what is sent, and the statuses that the server may return."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Hostile:
    """A request, and the statuses that the server may return.

    Args:
        body: The body that is sent.
        statuses: The statuses that are right.
        headers: Headers in addition to the usual ones.
        claimed_length: The Content-Length, if the rest of the body is never sent.
        raw: The whole request, instead of a head and the body.
    """

    body: bytes
    statuses: frozenset[int] = frozenset({400})
    headers: Mapping[str, str] = field(default_factory=dict)
    claimed_length: int | None = None
    raw: bytes | None = None


def hostile_requests(model: str, png: bytes, traps: Mapping[str, str]) -> dict[str, Hostile]:
    """Return one request of each kind.

    Args:
        model: The name of the model.
        png: A valid image.
        traps: URLs that may be requested and have no image, by kind.
    """

    def chat(content: Any, **options: Any) -> bytes:
        messages = [{"role": "user", "content": content}]
        return json.dumps(
            {"model": model, "messages": messages, "max_tokens": 4} | options
        ).encode()

    def images(url: str, *, times: int = 1) -> Hostile:
        image = {"type": "image_url", "image_url": {"url": url}}
        return Hostile(chat([image] * times + [{"type": "text", "text": "What is it?"}]))

    good = chat("Hello")
    kinds = {
        "malformed JSON": Hostile(good[:-3]),
        "not UTF-8": Hostile(b'{"model": "\xff\xfe"}'),
        "deep JSON": Hostile(b"[" * 100_000),
        "wrong types": Hostile(chat(7)),
        "empty messages": Hostile(json.dumps({"model": model, "messages": []}).encode()),
        "unknown role": Hostile(good.replace(b'"user"', b'"root"')),
        "unknown model": Hostile(
            json.dumps({"model": "../../etc", "messages": json.loads(good)["messages"]}).encode(),
            frozenset({404}),
        ),
        "chat template": Hostile(chat("Hello", chat_template="{{ 7 * 7 }}")),
        "chat template arguments": Hostile(chat("Hello", chat_template_kwargs={"tools": [1]})),
        "lone surrogate": Hostile(chat("Hello \ud800")),
        "out of range": Hostile(chat("Hello", temperature=-1)),
        "too long a prompt": Hostile(chat("word " * 20_000)),
        "wrong base64": images("data:image/png;base64,%%%"),
        "not an image": images(_data(b"GIF89a and no image")),
        "data URL of text": images("data:text/html;base64," + base64.b64encode(b"<p>").decode()),
        "truncated image": images(_data(png[: len(png) // 2])),
        "decompression bomb": images(_data(_blank_png(30_000, 30_000))),
        "too many images": images(_data(png), times=17),
        "too many decoded bytes": images(_data(_blank_png(2000, 2000)), times=16),
        "image of the assistant": Hostile(
            chat([])
            .replace(b'"user"', b'"assistant"')
            .replace(b"[]", b'[{"type": "image_url", "image_url": {"url": "data:,"}}]')
        ),
        "deep grey": images(_data(_blank_png(8000, 8000, depth=16))),
        "one column": images(_data(_blank_png(1, 64_000_000))),
        "huge aspect": images(_data(_blank_png(60_000, 1))),
        "file URL": images("file:///etc/passwd"),
        "path": images("/etc/passwd"),
        "other scheme": images("gopher://127.0.0.1:70/"),
        "other media type": Hostile(good, frozenset({415}), {"content-type": "text/plain"}),
        "other host": Hostile(good, frozenset({421}), {"host": "attacker.example"}),
        "header flood": Hostile(good, frozenset({400, 431}), {"x-flood": "x" * 100_000}),
        "oversized body": Hostile(b"", frozenset({413}), claimed_length=10**10),
        "slow body": Hostile(good[:5], frozenset({408}), claimed_length=len(good)),
        "many values": Hostile(
            b'{"model":"","messages":[' + b"0," * 2**21 + b"0]}", frozenset({400, 413})
        ),
        "many messages": Hostile(
            b'{"model":"","messages":[' + b'{"role":"user","content":""},' * 30_000 + b"0]}"
        ),
        "many fields": Hostile(
            good[:-1] + b"".join(b',"k%d":0' % number for number in range(100_000)) + b"}"
        ),
        "many parts": Hostile(chat([{"type": "text", "text": ""}] * 5000)),
        "many escapes": Hostile(good.replace(b"Hello", b"\\u0041" * 600_000)),
        "percent-encoded data URL": images("data:image/png," + "%41" * 2**20),
        "empty scans": images(_data(_empty_scans(5000, 2000))),
        "log-probabilities": Hostile(
            chat(
                "Hello", n=8, temperature=1, logprobs=True, top_logprobs=20, ignore_eos=True
            ).replace(b'"max_tokens": 4', b'"max_tokens": 64'),
            frozenset({200}),
        ),
        "silent image servers": images(traps["silent"], times=16),
        "one-byte chunks": Hostile(b"", raw=_chunked(b"1\r\n \r\n" * 100_000)),
        "length and chunks": Hostile(
            b"",
            raw=_chunked(
                f"{len(good):x}\r\n".encode() + good + b"\r\n0\r\n\r\n", b"content-length: 5\r\n"
            ),
        ),
        "damaged chunk": Hostile(b"", raw=_chunked(b"ZZ\r\n\r\n")),
    }
    for name, address in (
        ("private address", "http://10.0.0.1/a.png"),
        ("loopback address", "http://127.0.0.1:1/a.png"),
        ("metadata address", "http://169.254.169.254/latest/meta-data/"),
        ("loopback in IPv6", "http://[::ffff:127.0.0.1]:1/a.png"),
    ):
        kinds[name] = images(address)
    return kinds | {f"URL: {name}": images(url) for name, url in traps.items()}


def _chunked(chunks: bytes, headers: bytes = b"") -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        b"content-type: application/json\r\nconnection: close\r\n"
        b"transfer-encoding: chunked\r\n" + headers + b"\r\n" + chunks
    )


def _empty_scans(num_scans: int, size: int) -> bytes:
    """Return a progressive JPEG whose scans have no data: each takes time, and ten bytes."""
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, size, size, 1) + bytes([1, 0x11, 0])
    table = b"\xff\xdb" + struct.pack(">H", 67) + bytes([0]) + bytes([1] * 64)
    codes = b"\xff\xc4" + struct.pack(">H", 20) + bytes([0, 1] + [0] * 15 + [0])
    scan = b"\xff\xda" + struct.pack(">H", 8) + bytes([1, 1, 0, 0, 0, 0])
    return b"\xff\xd8" + table + frame + codes + scan * num_scans + b"\xff\xd9"


def _data(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _blank_png(width: int, height: int, depth: int = 1) -> bytes:
    """Return a grey image of one or more bits per pixel in few bytes."""
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width * depth + 7) // 8 + 1) * min(height, 30_000), 9)
    return _PNG + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum
