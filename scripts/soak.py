"""Sends good and hostile requests to a real server, and checks that it stays correct and small.

The load comes in rounds. A fifth of the requests are hostile or broken, a tenth disconnect, and
further clients occupy the server with slow bodies and unread responses. Every other request must
have the pipeline's own completion. After each round the idle server is measured from outside.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from _client import Client, Tally
from _good import Good, full_request, good_requests
from _hostile import hostile_requests
from _image_server import TRAPS, ImageServer
from _occupiers import occupying
from _server_log import check_log

import vlcore

SCRIPTS = Path(__file__).parent
DEMO = SCRIPTS.parent / "demo"
IMAGES = DEMO / "images"
MODEL = "tiny-llava"
_NUM_ROUNDS = 8
_MAX_ROUNDS = 24
"""Rounds until memory is flat. A server that warms up gets there, and one with a leak does not."""
_NUM_SLOWEST = 8
"""Number of good requests that the report names."""
_MAX_GROWTH = 0.05
"""Of the idle server's memory, over the last half of the rounds."""


@dataclass(frozen=True)
class Resources:
    """The resources of a process."""

    threads: int
    files: int
    sockets: int
    memory: int
    """Bytes that no other process shares (USS)."""

    @classmethod
    def from_process(cls, process: psutil.Process) -> Resources:
        """Measure a process."""
        return cls(
            process.num_threads(),
            len(process.open_files()),
            len(process.net_connections()),
            process.memory_full_info().uss,
        )


@dataclass(frozen=True)
class Limits:
    """How much hostile clients may delay good ones.

    Args:
        max_delay_s: Above the 99th percentile of a quiet round; on a machine so slow that the
            percentile itself is larger, twice the percentile is allowed.
        max_stall_ms: Of the event loop.
    """

    max_delay_s: float
    max_stall_ms: float


async def _wait_until_idle(process: psutil.Process, idle: Resources) -> Resources:
    """Wait until the server holds no more than before the first client, or for a minute."""
    until = time.monotonic() + 60
    while True:
        await asyncio.sleep(0.1)
        now = Resources.from_process(process)
        is_idle = now.files <= idle.files and now.sockets <= idle.sockets
        if is_idle or time.monotonic() > until:
            return now


def _expected(url: str) -> tuple[list[Good], Good]:
    with vlcore.pipeline(DEMO / MODEL, device="cpu", dtype="float32") as pipe:
        return good_requests(MODEL, pipe, IMAGES, url), full_request(MODEL, pipe, IMAGES)


async def soak(
    port: int, process: psutil.Process, seconds: float, num_clients: int, limits: Limits
) -> Tally:
    """Run the rounds, and measure the idle server after each."""
    images = ImageServer(IMAGES)
    async with images.running():
        good, full = await asyncio.to_thread(_expected, images.url("tower.png"))
        traps = {name: images.url(name) for name in TRAPS}
        hostile = hostile_requests(MODEL, (IMAGES / "tower.png").read_bytes(), traps)
        tally = Tally()
        clients = [Client(port, good, full, hostile, tally, seed) for seed in range(num_clients)]
        await _load(clients, port, process, tally, seconds, limits)
    if images.num_caught:
        tally.faults.append(f"{images.num_caught} redirects to this machine were followed")
    return tally


async def _load(
    clients: list[Client],
    port: int,
    process: psutil.Process,
    tally: Tally,
    seconds: float,
    limits: Limits,
) -> None:
    idle = Resources.from_process(process)
    await asyncio.gather(*(client.burst() for client in clients))
    round_s = seconds / (_NUM_ROUNDS + 1)
    until = time.monotonic() + round_s
    await asyncio.gather(*(client.run(until, only_good=True) for client in clients))
    quiet_s = _percentile(tally, 99)
    tally.latencies.clear()
    measured: list[Resources] = []
    while len(measured) < _MAX_ROUNDS:
        until = time.monotonic() + round_s
        async with occupying(port):
            await asyncio.gather(*(client.run(until) for client in clients))
        measured.append(await _wait_until_idle(process, idle))
        mib = measured[-1].memory / 2**20
        print(f"round {len(measured)}: {mib:.1f} MiB, {measured[-1].threads} threads", flush=True)
        if len(measured) >= _NUM_ROUNDS and growth(measured) <= _MAX_GROWTH:
            break
    tally.faults += _compare(measured, idle)
    slowest = sorted(tally.latencies, reverse=True)[:_NUM_SLOWEST]
    slowest_s = slowest[0][0] if slowest else 0.0
    print(f"good requests: {quiet_s:.2f} s (99 %, quiet round), {slowest_s:.2f} s (slowest)")
    print("slowest:", ", ".join(f"{name} {seconds:.2f} s" for seconds, name in slowest))
    if slowest_s > quiet_s + max(limits.max_delay_s, quiet_s):
        tally.faults.append(f"a good request took {slowest_s:.2f} s, and {quiet_s:.2f} s if quiet")


def growth(measured: Sequence[Resources]) -> float:
    """Return the relative growth of memory within the last half of the rounds, by medians."""
    half = [resources.memory for resources in measured[len(measured) // 2 :]]
    middle = len(half) // 2
    return statistics.median(half[middle:]) / statistics.median(half[:middle]) - 1


def _compare(measured: Sequence[Resources], idle: Resources) -> list[str]:
    warm, end = measured[len(measured) // 2], measured[-1]
    print(f"before the load: {idle}\nafter warming up: {warm}\nat the end: {end}")
    faults = []
    if growth(measured) > _MAX_GROWTH:
        faults.append(f"memory still grows after {len(measured)} rounds: {growth(measured):+.1%}")
    if end.files > idle.files or end.sockets > idle.sockets:
        faults.append(f"resources are left: {idle} before, {warm} after warming up, {end}")
    return faults


async def _get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
    response = await reader.read()
    writer.close()
    return response.decode()


async def _stop(port: int, server: subprocess.Popen[bytes]) -> list[str]:
    """Stop the server during a stream: ``/ready`` must return 503, and the stream must end."""
    body = (
        f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"Hi"}}],"max_tokens":900,'
        '"ignore_eos":true,"stream":true}'
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
        b"content-type: application/json\r\n" + f"content-length: {len(body)}\r\n\r\n".encode()
    )
    writer.write(body)
    await reader.readuntil(b"data: ")
    server.send_signal(signal.SIGTERM)
    faults = []
    while "200 OK" in (ready := await _get(port, "/ready")):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    if " 503 " not in ready:
        faults.append(f"/ready of a stopping server returned {ready[:100]!r}")
    if b"[DONE]" not in await reader.read():
        faults.append("a stream did not finish while the server stopped")
    writer.close()
    return faults


def _percentile(tally: Tally, percent: int) -> float:
    values = [seconds for seconds, _ in tally.latencies]
    if not values:
        return 0.0
    return statistics.quantiles([*values, *values], n=100)[percent - 1]


def report(tally: Tally) -> None:
    """Print the counts and latencies."""
    for (kind, status), number in sorted(tally.counts.items()):
        print(f"{number:7} {kind}: {status}")
    print(
        f"{sum(tally.counts.values())} requests; good ones under load took "
        f"{_percentile(tally, 50):.2f} s (median), "
        f"{_percentile(tally, 99):.2f} s (99 %)"
    )


def main() -> int:
    """Run the soak; return 0 if there is no fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--time-limit-s",
        type=float,
        default=5,
        help="time limit of a body and of a download: more than a good client ever waits",
    )
    parser.add_argument(
        "--max-delay-s",
        type=float,
        default=2,
        help="by which hostile clients may delay a good request",
    )
    parser.add_argument("--max-stall-ms", type=float, default=50, help="of the server's event loop")
    options = parser.parse_args()
    limit = str(options.time_limit_s)
    command = [sys.executable, str(SCRIPTS / "_heartbeat.py"), "serve", str(DEMO / MODEL)]
    command += ["--port", "0", "--device", "cpu", "--dtype", "float32", "--body-timeout-s", limit]
    # One host in addition to the public ones, by name: its addresses by themselves are refused.
    command += ["--allow-image-host", "localhost", "--download-timeout-s", limit]
    command += ["--shutdown-timeout-s", "240"]  # for the stream that ends while the server stops
    command += ["--max-image-mib", "4", "--max-decoded-mib", "64", "--max-requests", "128"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        server = subprocess.Popen(command, stderr=log, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        stop_faults: list[str] = []
        try:
            port = _port(server, log)
            limits = Limits(options.max_delay_s, options.max_stall_ms)
            tally = asyncio.run(
                soak(port, psutil.Process(server.pid), options.seconds, options.clients, limits)
            )
            metrics = asyncio.run(_get(port, "/metrics"))
            stop_faults = asyncio.run(_stop(port, server))
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
            try:
                code = server.wait(300)
            except subprocess.TimeoutExpired:
                server.kill()
                code = server.wait()
        log.seek(0)
        text = log.read()
    report(tally)
    faults = tally.faults + stop_faults + check_log(text, options.max_stall_ms)
    if "vlcore_active_requests 0.0" not in metrics:
        faults.append("requests are still active")
    if 'vlcore_requests_total{outcome="internal_error"}' in metrics:
        faults.append("the server had an internal error")
    if code != 0:
        faults.append(f"the server ended with code {code}")
    for fault in faults[:20]:
        print(f"FAULT {fault}")
    print(f"{len(faults)} faults")
    return 1 if faults else 0


def _port(server: subprocess.Popen[bytes], log: Any) -> int:
    """Read the port from the server's log."""
    for _ in range(6000):
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
