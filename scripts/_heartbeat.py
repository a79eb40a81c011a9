"""Runs ``vlcore`` with a heartbeat on its server's event loop, and prints the longest stall.

A stall is the processor time that the event loop's thread takes between two heartbeats. The time by
which a heartbeat is late is printed too; it contains what other threads and programs take.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time

from vlcore.cli import main
from vlcore.server import serving

_INTERVAL_S = 0.005
_REPORTED_S = 0.05


class Heartbeat:
    """Measures how late the event loop runs a task that is due."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.latest_s = 0.0
        self.num_late = 0

    async def run(self) -> None:
        """Measure until the task is cancelled."""
        while True:
            started, cpu_started = time.perf_counter(), time.thread_time()
            await asyncio.sleep(_INTERVAL_S)
            late_s = time.perf_counter() - started - _INTERVAL_S
            stall_s = min(late_s, time.thread_time() - cpu_started)
            self.longest_s = max(self.longest_s, stall_s)
            self.latest_s = max(self.latest_s, late_s)
            self.num_late += late_s > _REPORTED_S


_HEARTBEAT = Heartbeat()


class Server(serving.Server):
    """The server, with a heartbeat from its start to its end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and begin to measure."""
        await super().startup(sockets)
        self._heartbeat = asyncio.create_task(_HEARTBEAT.run())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, and end to measure."""
        self._heartbeat.cancel()
        await super().shutdown(sockets)


if __name__ == "__main__":
    serving.Server = Server  # type: ignore[misc]
    try:
        main()
    finally:
        print(
            f"heartbeat: longest stall {_HEARTBEAT.longest_s * 1000:.0f} ms; "
            f"late by at most {_HEARTBEAT.latest_s * 1000:.0f} ms, "
            f"{_HEARTBEAT.num_late} times by more than {_REPORTED_S * 1000:.0f} ms",
            file=sys.stderr,
        )
