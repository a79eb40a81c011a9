"""Asks a real server for a while, well and badly, and checks that it stays right and small.

A fifth of the requests are hostile or broken and a tenth go away in mid-answer; every other one
must get the pipeline's own answer. Memory, threads, files and sockets are watched from outside.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from _client import Client, Tally
from _good import Good, full_request, good_requests
from _hostile import hostile_requests
from _picture_server import TRAPS, PictureServer

import vlcore

DEMO = Path(__file__).parents[1] / "demo"
IMAGES = DEMO / "images"
MODEL = "tiny-llava"
LONG_S = 30.0
"""A shorter run is all warm-up: its memory and threads may still grow, to a bound."""
MOST_GROWTH = 0.05
"""Of memory, from the second quarter to the last."""


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


async def _watch(process: psutil.Process, tally: Tally, started: float) -> None:
    while True:
        tally.memory.append((time.monotonic() - started, process.memory_full_info().uss))
        tally.threads.append(process.num_threads())
        await asyncio.sleep(0.5)


async def _settled(process: psutil.Process, idle: Holding) -> Holding:
    """Wait until the server holds no more than before the first client, or for a minute."""
    until = time.monotonic() + 60
    while True:
        await asyncio.sleep(0.1)
        now = Holding.of(process)
        is_idle = now.files <= idle.files and now.sockets <= idle.sockets
        if is_idle or time.monotonic() > until:
            return now


def _answered(url: str) -> tuple[list[Good], Good]:
    with vlcore.pipeline(DEMO / MODEL, device="cpu", dtype="float32") as pipe:
        return good_requests(MODEL, pipe, IMAGES, url), full_request(MODEL, pipe, IMAGES)


async def soak(port: int, process: psutil.Process, seconds: float, num_clients: int) -> Tally:
    """Warm the server up, look, go on, and look again."""
    pictures = PictureServer(IMAGES)
    async with pictures.running():
        good, full = await asyncio.to_thread(_answered, pictures.url("tower.png"))
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
    started, idle = time.monotonic(), Holding.of(process)
    watching = asyncio.create_task(_watch(process, tally, started))
    await asyncio.gather(*(client.burst() for client in clients))
    holdings = []
    for share in (0.25, 0.75):
        until = time.monotonic() + share * seconds
        await asyncio.gather(*(client.run(until) for client in clients))
        holdings.append(await _settled(process, idle))
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
    parser.add_argument(
        "--time-limit-s",
        type=float,
        default=1,
        help="for a body and for a download: more than the machine ever lets a good client wait",
    )
    options = parser.parse_args()
    limit = str(options.time_limit_s)
    command = [sys.executable, "-m", "vlcore", "serve", str(DEMO / MODEL), "--port", "0"]
    command += ["--device", "cpu", "--dtype", "float32", "--body-timeout-s", limit]
    # One host beside the public ones, by name: its addresses by themselves stay refused.
    command += ["--allow-image-host", "localhost", "--download-timeout-s", limit]
    command += ["--max-image-mib", "4", "--max-decoded-mib", "64"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
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
                code = server.wait(300)
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
