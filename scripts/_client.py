"""A client of the soak, which sends good and hostile requests or disconnects, and its tally."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from _good import Good
from _hostile import Hostile

PATIENCE_S = 300.0
_WAYS_TO_DISCONNECT = ("drops", "stalls and drops", "reads nothing", "half-closes")
_HEADERS = {"content-type": "application/json", "host": "127.0.0.1"}


@dataclass
class Tally:
    """The results so far."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies: list[tuple[float, str]] = field(default_factory=list)
    """The time of each good request, in seconds, and its name."""
    faults: list[str] = field(default_factory=list)


def _head(headers: dict[str, str], length: int) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {length}", "connection: close"]
    return ("POST /v1/chat/completions HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


class Client:
    """Sends one request after another."""

    def __init__(
        self,
        port: int,
        good: list[Good],
        full: Good,
        hostile: dict[str, Hostile],
        tally: Tally,
        seed: int,
    ) -> None:
        self._port = port
        self._good = good
        self._full = full
        self._hostile = hostile
        self._tally = tally
        self._random = random.Random(seed)

    async def burst(self) -> None:
        """Send a request with many images: the server's thread pools fill up."""
        await self._try("full")

    async def run(self, until: float, *, only_good: bool = False) -> None:
        """Send requests until a time; faults are recorded."""
        while time.monotonic() < until:
            draw = 1.0 if only_good else self._random.random()
            if draw < 0.2:
                await self._try(self._random.choice(sorted(self._hostile)))
            elif draw < 0.3:
                await self._try(self._random.choice(_WAYS_TO_DISCONNECT))
            else:
                await self._try("good")

    async def _try(self, kind: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                if kind in self._hostile:
                    await self._attack(kind)
                elif kind in _WAYS_TO_DISCONNECT:
                    await self._drop(kind)
                else:
                    await self._ask(
                        self._full if kind == "full" else self._random.choice(self._good)
                    )
        except (OSError, TimeoutError, ValueError, IndexError, KeyError) as error:
            self._fault(kind, f"{type(error).__name__}: {error}")

    async def _ask(self, good: Good) -> None:
        started = time.monotonic()
        status, body = await self._exchange(_head(_HEADERS, len(good.body)) + good.body)
        if status == 200 and _text(body, good.stream) == good.text:
            self._tally.latencies.append((time.monotonic() - started, good.name))
            self._tally.counts["good", "200"] += 1
        else:
            self._fault("good", f"{status}: {body[-200:]!r}; expected {good.text!r}")

    async def _attack(self, kind: str) -> None:
        hostile = self._hostile[kind]
        length = len(hostile.body) if hostile.claimed_length is None else hostile.claimed_length
        try:
            status, body = await self._exchange(
                hostile.raw or _head(_HEADERS | dict(hostile.headers), length) + hostile.body
            )
        except ConnectionError:
            # A server may close before it has read all that a flood sends.
            if kind not in ("header flood", "one-byte chunks"):
                raise
            self._tally.counts[kind, "closed"] += 1
            return
        if status in hostile.statuses:
            self._tally.counts[kind, str(status)] += 1
        else:
            self._fault(kind, f"{status}: {body[-200:]!r}")

    async def _drop(self, kind: str) -> None:
        """Disconnect within a body, within a stream, or while waiting for a whole response."""
        good = self._random.choice(self._good)
        request = _head(_HEADERS, len(good.body)) + good.body
        part = len(request) if self._random.random() < 0.8 else len(request) // 2
        # Little is read ahead where nothing is read.
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1024)
        try:
            writer.write(request[:part])
            await writer.drain()
            if kind == "half-closes":  # and receives its response, or none within its body
                writer.write_eof()
                response = await reader.read()
                if part == len(request) and b"HTTP/1.1 200 " not in response:
                    raise ValueError(f"a half-closed client received {response[:100]!r}")
            elif kind == "reads nothing":
                await asyncio.sleep(2)
            elif part == len(request) and good.stream and kind == "drops":
                await reader.readuntil(b"data: ")
            else:
                await asyncio.sleep(self._random.random() * 0.3)
        finally:
            writer.transport.abort()
        self._tally.counts[kind, "disconnected"] += 1

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request)
            response = await reader.read()
        finally:
            writer.transport.abort()
        head, _, body = response.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), _dechunked(head, body)

    def _fault(self, kind: str, message: str) -> None:
        self._tally.counts[kind, "FAULT"] += 1
        self._tally.faults.append(f"{kind}: {message}")


def _dechunked(head: bytes, body: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        parts.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(parts)


def _text(body: bytes, stream: bool) -> str:
    if not stream:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    *events, end = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    if end != b"[DONE]":
        raise ValueError("the stream is incomplete")
    deltas = (choice["delta"] for event in events for choice in json.loads(event)["choices"])
    return "".join(delta.get("content", "") for delta in deltas)
