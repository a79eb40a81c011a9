"""Asks a real server for a while, well and badly, and checks that it stays right and small.

A fifth of the requests are hostile or broken and a tenth go away in mid-answer; every other one
must get the pipeline's own answer. Memory, threads, files and sockets are watched from outside.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from _good import Good, full_request, good_requests
from _hostile import Hostile, hostile_requests
from _picture_server import TRAPS, PictureServer

import vlcore

DEMO = Path(__file__).parents[1] / "demo"
IMAGES = DEMO / "images"
MODEL = "tiny-llava"
PATIENCE_S = 60.0
LONG_S = 30.0
"""A shorter run is all warm-up: its memory and threads may still grow, to a bound."""
MOST_GROWTH = 0.05
"""Of memory, from the second quarter to the last."""
_WAYS_TO_LEAVE = ("drops", "stalls and drops", "reads nothing")
_HEADERS = {"content-type": "application/json", "host": "127.0.0.1"}


@dataclass
class Tally:
    """What happened so far."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the start, and bytes of the server's own."""
    threads: list[int] = field(default_factory=list)
    """Of the server, at the same times."""


@dataclass(frozen=True)
class Holding:
    """What a process holds."""

    threads: int
    files: int
    sockets: int

    @classmethod
    def of(cls, process: psutil.Process) -> Holding:
        """Look at a process."""
        return cls(process.num_threads(), len(process.open_files()), len(process.net_connections()))


def _head(headers: dict[str, str], length: int) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {length}", "connection: close"]
    return ("POST /v1/chat/completions HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


class Client:
    """Sends one request after another until the time is over."""

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
        """Ask for much at once: the server's pools of threads fill up."""
        await self._try("full")

    async def run(self, until: float) -> None:
        """Ask; what goes wrong is written down."""
        while time.monotonic() < until:
            draw = self._random.random()
            if draw < 0.2:
                await self._try(self._random.choice(sorted(self._hostile)))
            elif draw < 0.3:
                await self._try(self._random.choice(_WAYS_TO_LEAVE))
            else:
                await self._try("good")

    async def _try(self, kind: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                if kind in self._hostile:
                    await self._attack(kind)
                elif kind in _WAYS_TO_LEAVE:
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
        if status == 200 and _text(body, good.streams) == good.text:
            self._tally.latencies.append(time.monotonic() - started)
            self._tally.counts["good", "200"] += 1
        else:
            self._fault("good", f"{status}: {body[-200:]!r}; expected {good.text!r}")

    async def _attack(self, kind: str) -> None:
        hostile = self._hostile[kind]
        length = len(hostile.body) if hostile.claimed_length is None else hostile.claimed_length
        try:
            status, body = await self._exchange(
                _head(_HEADERS | dict(hostile.headers), length) + hostile.body
            )
        except ConnectionError:
            # A server may close before it has read all that a flood sends.
            if kind != "header flood":
                raise
            self._tally.counts[kind, "closed"] += 1
            return
        if status in hostile.statuses:
            self._tally.counts[kind, str(status)] += 1
        else:
            self._fault(kind, f"{status}: {body[-200:]!r}")

    async def _drop(self, kind: str) -> None:
        """Go away in the midst: of a body, of a stream, or of the wait for a whole answer."""
        good = self._random.choice(self._good)
        request = _head(_HEADERS, len(good.body)) + good.body
        part = len(request) if self._random.random() < 0.8 else len(request) // 2
        # Little is read ahead where nothing is read.
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1024)
        try:
            writer.write(request[:part])
            await writer.drain()
            if kind == "reads nothing":
                await asyncio.sleep(2)
            elif part == len(request) and good.streams and kind == "drops":
                await reader.readuntil(b"data: ")
            else:
                await asyncio.sleep(self._random.random() * 0.3)
        finally:
            writer.transport.abort()
        self._tally.counts[kind, "gone"] += 1

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request)
            answer = await reader.read()
        finally:
            writer.transport.abort()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), _dechunked(head, body)

    def _fault(self, kind: str, what: str) -> None:
        self._tally.counts[kind, "FAULT"] += 1
        self._tally.faults.append(f"{kind}: {what}")


def _dechunked(head: bytes, body: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        parts.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(parts)


def _text(body: bytes, streams: bool) -> str:
    if not streams:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    *events, end = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    if end != b"[DONE]":
        raise ValueError("the stream broke off")
    deltas = (choice["delta"] for event in events for choice in json.loads(event)["choices"])
    return "".join(delta.get("content", "") for delta in deltas)


async def _watch(process: psutil.Process, tally: Tally, started: float) -> None:
    while True:
        tally.memory.append((time.monotonic() - started, process.memory_full_info().uss))
        tally.threads.append(process.num_threads())
        await asyncio.sleep(0.5)


async def _settled(process: psutil.Process) -> Holding:
    """Wait until nobody is connected and look."""
    await asyncio.sleep(1.5)
    return Holding.of(process)


def _good(url: str) -> tuple[list[Good], Good]:
    with vlcore.pipeline(DEMO / MODEL, device="cpu", dtype="float32") as pipe:
        return good_requests(MODEL, pipe, IMAGES, url), full_request(MODEL, pipe, IMAGES)


async def soak(port: int, process: psutil.Process, seconds: float, num_clients: int) -> Tally:
    """Warm the server up, look, go on, and look again."""
    pictures = PictureServer(IMAGES)
    async with pictures.running():
        good, full = await asyncio.to_thread(_good, pictures.url("tower.png"))
        traps = {name: pictures.url(name) for name in TRAPS}
        hostile = hostile_requests(MODEL, (IMAGES / "tower.png").read_bytes(), traps)
        tally = Tally()
        clients = [Client(port, good, full, hostile, tally, seed) for seed in range(num_clients)]
        await _load(clients, process, tally, seconds)
    if pictures.num_caught:
        tally.faults.append(f"{pictures.num_caught} redirects to this machine were followed")
    return tally


async def _load(
    clients: list[Client], process: psutil.Process, tally: Tally, seconds: float
) -> None:
    started = time.monotonic()
    watching = asyncio.create_task(_watch(process, tally, started))
    await asyncio.gather(*(client.burst() for client in clients))
    holdings = []
    for share in (0.25, 0.75):
        until = time.monotonic() + share * seconds
        await asyncio.gather(*(client.run(until) for client in clients))
        holdings.append(await _settled(process))
    watching.cancel()
    warm, end = holdings
    print(f"held after warm-up: {warm}\nheld at the end:    {end}")
    grows = seconds >= LONG_S and end.threads > warm.threads
    if grows or end.files > warm.files or end.sockets > warm.sockets:
        tally.faults.append(f"something is left: {warm} after warm-up, {end} at the end")


def check_memory(memory: list[tuple[float, int]]) -> tuple[str, bool]:
    """Compare the second quarter with the last."""
    end = memory[-1][0]
    second = statistics.median(uss for at, uss in memory if end / 4 <= at < end / 2)
    last = statistics.median(uss for at, uss in memory if at >= end * 3 / 4)
    growth = last / second - 1
    line = f"memory (USS): {second / 2**20:.1f} MiB, then {last / 2**20:.1f} MiB: {growth:+.1%}"
    return line, growth <= MOST_GROWTH


async def _get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()


def report(tally: Tally, seconds: float) -> None:
    """Print what happened."""
    for (kind, status), number in sorted(tally.counts.items()):
        print(f"{number:7} {kind}: {status}")
    if tally.latencies:
        steps = statistics.quantiles([*tally.latencies, *tally.latencies], n=100)
        print(
            f"{sum(tally.counts.values())} requests in {seconds:g} s; good answers took "
            f"{steps[49]:.2f} s (median), {steps[98]:.2f} s (99 %)"
        )


def main() -> int:
    """Run it: 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args()
    command = [sys.executable, "-m", "vlcore", "serve", str(DEMO / MODEL), "--port", "0"]
    command += ["--device", "cpu", "--dtype", "float32", "--body-timeout-s", "1"]
    # One host beside the public ones, by name: its addresses by themselves stay refused.
    command += ["--allow-image-host", "localhost", "--download-timeout-s", "1"]
    command += ["--max-image-mib", "4", "--max-decoded-mib", "64"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stderr=log, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        try:
            port = _port(server, log)
            tally = asyncio.run(
                soak(port, psutil.Process(server.pid), options.seconds, options.clients)
            )
            metrics = asyncio.run(_get(port, "/metrics"))
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                code = server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                code = server.wait()
        log.seek(0)
        text = log.read()
    report(tally, options.seconds)
    step = max(1, len(tally.memory) // 8)
    print("over time, MiB:", [round(uss / 2**20) for _, uss in tally.memory[::step]])
    print("over time, threads:", tally.threads[::step])
    line, is_flat = check_memory(tally.memory)
    print(line)
    faults = tally.faults
    if not is_flat and options.seconds >= LONG_S:
        faults.append(line)
    if "vlcore_active_requests 0.0" not in metrics:
        faults.append("requests are still active")
    if 'vlcore_requests_total{outcome="internal_error"}' in metrics:
        faults.append("the server failed within")
    if "ERROR" in text or "Traceback" in text:
        faults.append(f"the log tells of errors:\n{text[-4000:]}")
    if code != 0:
        faults.append(f"the server ended with code {code}")
    for fault in faults[:20]:
        print(f"FAULT {fault}")
    print(f"{len(faults)} faults")
    return 1 if faults else 0


def _port(server: subprocess.Popen[bytes], log: Any) -> int:
    """Read in its log where it listens."""
    for _ in range(1200):
        log.seek(0)
        if match := re.search(r"http://127\.0\.0\.1:(\d+)", log.read()):
            return int(match[1])
        if server.poll() is not None:
            break
        time.sleep(0.05)
    log.seek(0)
    raise RuntimeError(f"the server did not start: {log.read()}")


if __name__ == "__main__":
    sys.exit(main())
