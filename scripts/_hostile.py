"""Requests that have no answer, by kind: what is sent, and the statuses that it may get."""

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
    """A request, and what the server may say to it.

    Args:
        body: as it is sent.
        statuses: any one of them is right.
        headers: beside the usual ones.
        claimed_length: the body's length as its head states it; the rest never comes.
    """

    body: bytes
    statuses: frozenset[int] = frozenset({400})
    headers: Mapping[str, str] = field(default_factory=dict)
    claimed_length: int | None = None


def hostile_requests(model: str, png: bytes, traps: Mapping[str, str]) -> dict[str, Hostile]:
    """Make one of each kind.

    Args:
        model: its name.
        png: a good picture.
        traps: URLs that may be asked and have no picture, by kind.
    """

    def ask(content: Any, **more: Any) -> bytes:
        messages = [{"role": "user", "content": content}]
        return json.dumps({"model": model, "messages": messages, "max_tokens": 4} | more).encode()

    def see(url: str, *, times: int = 1) -> Hostile:
        image = {"type": "image_url", "image_url": {"url": url}}
        return Hostile(ask([image] * times + [{"type": "text", "text": "What is it?"}]))

    good = ask("Hello")
    kinds = {
        "malformed JSON": Hostile(good[:-3]),
        "not UTF-8": Hostile(b'{"model": "\xff\xfe"}'),
        "deep JSON": Hostile(b"[" * 100_000),
        "wrong types": Hostile(ask(7)),
        "empty messages": Hostile(json.dumps({"model": model, "messages": []}).encode()),
        "unknown role": Hostile(good.replace(b'"user"', b'"root"')),
        "unknown model": Hostile(
            json.dumps({"model": "../../etc", "messages": json.loads(good)["messages"]}).encode(),
            frozenset({404}),
        ),
        "unknown parameter": Hostile(ask("Hello", chat_template="{{ 7 * 7 }}")),
        "arguments of a template": Hostile(ask("Hello", chat_template_kwargs={"tools": [1]})),
        "lone surrogate": Hostile(ask("Hello \ud800")),
        "out of range": Hostile(ask("Hello", temperature=-1)),
        "too long a prompt": Hostile(ask("word " * 20_000)),
        "wrong base64": see("data:image/png;base64,%%%"),
        "not a picture": see(_data(b"GIF89a nothing of the kind")),
        "data URL of text": see("data:text/html;base64," + base64.b64encode(b"<p>").decode()),
        "truncated picture": see(_data(png[: len(png) // 2])),
        "decompression bomb": see(_data(_empty_png(30_000, 30_000))),
        "too many pictures": see(_data(png), times=17),
        "too many decoded bytes": see(_data(_empty_png(2000, 2000)), times=16),
        "picture for the assistant": Hostile(
            ask([])
            .replace(b'"user"', b'"assistant"')
            .replace(b"[]", b'[{"type": "image_url", "image_url": {"url": "data:,"}}]')
        ),
        "huge aspect": see(_data(_empty_png(60_000, 1))),
        "file URL": see("file:///etc/passwd"),
        "path": see("/etc/passwd"),
        "other scheme": see("gopher://127.0.0.1:70/"),
        "other media type": Hostile(good, frozenset({415}), {"content-type": "text/plain"}),
        "other host": Hostile(good, frozenset({421}), {"host": "attacker.example"}),
        "header flood": Hostile(good, frozenset({400, 431}), {"x-flood": "x" * 100_000}),
        "oversized body": Hostile(b"", frozenset({413}), claimed_length=10**10),
        "slow body": Hostile(good[:5], frozenset({408}), claimed_length=len(good)),
    }
    for name, address in (
        ("private address", "http://10.0.0.1/a.png"),
        ("loopback address", "http://127.0.0.1:1/a.png"),
        ("metadata address", "http://169.254.169.254/latest/meta-data/"),
        ("loopback in IPv6", "http://[::ffff:127.0.0.1]:1/a.png"),
    ):
        kinds[name] = see(address)
    return kinds | {f"URL: {name}": see(url) for name, url in traps.items()}


def _data(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _empty_png(width: int, height: int) -> bytes:
    """Write a picture of one bit a pixel whose bytes are few."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * min(height, 30_000), 9)
    return _PNG + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum
