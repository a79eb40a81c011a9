"""Runs ``vlcore`` with a heartbeat on its server's event loop, and prints what it measured.

A heartbeat is late because the event loop runs something else (``own``), because it waits for
Python's lock, which another thread holds (``lock``), or because other programs have the processors
(``queued``). The first two are a stall, and are the server's doing; the last is the machine's.
Events pile up while other programs have the processors: such a heartbeat proves nothing about the
server, and is counted only.
At the end of the server, its threads are printed too: of each pool, and all others.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import sub
from typing import Any
from weakref import WeakSet

import torch

from vlcore._utils.executor import DaemonExecutor
from vlcore.cli import main
from vlcore.server import serving

_INTERVAL_S = 0.005
_IGNORED_S = 0.002
_REPORTED_S = 0.05
_HOLDERS = ("MainThread", "vlcore-parse", "vlcore-fetch", "vlcore-pipeline", "vlcore-resolve")


@dataclass(frozen=True)
class Stall:
    """A heartbeat that was late.

    Args:
        own_s: Time in which the event loop's thread ran.
        lock_s: Time in which it waited for another thread.
        queued_s: Time in which it could run, and other programs had the processors.
        holder: The thread that it waited for, probably.
    """

    own_s: float = 0.0
    lock_s: float = 0.0
    queued_s: float = 0.0
    holder: str = ""

    @property
    def server_s(self) -> float:
        """What the server is the cause of."""
        return self.own_s + self.lock_s

    def __str__(self) -> str:
        own, lock, queued = (
            round(seconds * 1000) for seconds in (self.own_s, self.lock_s, self.queued_s)
        )
        return f"own {own} ms, lock {lock} ms of {self.holder}, queued {queued} ms"


class Heartbeat:
    """Measures how late the event loop runs a task that is due."""

    def __init__(self) -> None:
        self.longest = Stall()
        self.latest_s = 0.0
        self.num_late = 0
        self.num_queued = 0

    async def run(self) -> None:
        """Measure until the task is cancelled."""
        clocks = _Clocks()
        try:
            while True:
                clocks.refresh()
                started = time.perf_counter()
                own_s, queued_s, others_s = time.thread_time(), clocks.queued_s(), clocks.others_s()
                await asyncio.sleep(_INTERVAL_S)
                late_s = time.perf_counter() - started - _INTERVAL_S
                if late_s > _IGNORED_S:
                    queued_s = clocks.queued_s() - queued_s
                    times_s = map(sub, clocks.others_s(), others_s)
                    held = max(zip(times_s, clocks.names, strict=True), default=(0.0, ""))
                    self._record(late_s, time.thread_time() - own_s, queued_s, *held)
        finally:
            clocks.close()

    def _record(
        self, late_s: float, own_s: float, queued_s: float, held_s: float, holder: str
    ) -> None:
        """Record a late heartbeat.

        Args:
            late_s: How late it was.
            own_s: Time in which the event loop's thread ran.
            queued_s: Time in which it waited for a processor.
            held_s: The longest time that another thread ran which may have held the lock. The
                thread that holds it runs: time in which none ran is not its doing.
            holder: The name of this thread.
        """
        queued_s = min(late_s, queued_s)
        own_s = min(late_s - queued_s, own_s)
        lock_s = min(late_s - queued_s - own_s, held_s)
        stall = Stall(own_s, lock_s, late_s - own_s - lock_s, holder)
        if queued_s > _REPORTED_S:
            self.num_queued += 1
        else:
            self.longest = max(self.longest, stall, key=lambda one: one.server_s)
        self.latest_s = max(self.latest_s, late_s)
        self.num_late += late_s > _REPORTED_S


class _Clocks:
    """The clocks that a heartbeat reads. It must be cheap, because it runs on the event loop."""

    def __init__(self) -> None:
        self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._others: list[int] = []
        self.names: list[str] = []
        self._num_threads = 0

    def close(self) -> None:
        os.close(self._schedstat)

    def refresh(self) -> None:
        """Look for new threads that may hold the lock for long.

        Those that encode images and generate tokens are not among them: they compute without it.
        """
        if threading.active_count() == self._num_threads:
            return
        self._num_threads = threading.active_count()
        others = [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith(_HOLDERS)
            and thread is not threading.current_thread()
            and thread.ident is not None
        ]
        self.names = [thread.name for thread in others]
        self._others = [time.pthread_getcpuclockid(thread.ident or 0) for thread in others]

    def others_s(self) -> list[float]:
        """Return the processor times of these threads, which live as long as the server."""
        return list(map(time.clock_gettime, self._others))

    def queued_s(self) -> float:
        """Return for how long this thread has waited for a processor, in seconds."""
        return int(os.pread(self._schedstat, 100, 0).split()[1]) / 1e9


class CollectionTimer:
    """Measures garbage collections, during which no thread runs."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._started_s = 0.0
        gc.callbacks.append(self._record)

    def _record(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._started_s = time.thread_time()
        else:
            self.longest_s = max(self.longest_s, time.thread_time() - self._started_s)


class ThreadCounter:
    """Counts the threads of the pools, and all others.

    It must be created before the model is loaded.
    """

    def __init__(self) -> None:
        types = (ThreadPoolExecutor, DaemonExecutor)
        self._pools = WeakSet[Any](pool for pool in gc.get_objects() if isinstance(pool, types))
        for pool_type in types:
            self._watch(pool_type)

    def count(self) -> dict[str, Any]:
        """Return the threads as JSON.

        Returns:
            ``pools`` has the name of each pool, its number of threads, and its maximum; ``others``
            are the names of the threads outside of pools; ``native`` is the number of those that
            are not Python's, and ``max_native`` the most that torch starts for Python's.
        """
        pools = []
        pooled = set[threading.Thread]()
        for pool in self._pools:
            threads = set(pool._threads)
            pooled |= threads
            if isinstance(pool, ThreadPoolExecutor):
                name, maximum = pool._thread_name_prefix, pool._max_workers
            else:
                name, maximum = pool._name, pool._num_threads
            pools.append((name, len(threads), maximum))
        python = threading.enumerate()
        others = sorted(thread.name for thread in python if thread not in pooled)
        native = len(os.listdir("/proc/self/task")) - len(python)
        # Each thread that computes with torch has helpers of its own.
        max_native = len(python) * (torch.get_num_threads() - 1)
        return {
            "pools": sorted(pools),
            "others": others,
            "native": native,
            "max_native": max_native,
        }

    def _watch(self, pool_type: Any) -> None:
        create = pool_type.__init__

        def create_and_remember(pool: Any, *args: Any, **options: Any) -> None:
            create(pool, *args, **options)
            self._pools.add(pool)

        pool_type.__init__ = create_and_remember


_HEARTBEAT = Heartbeat()


class Server(serving.Server):
    """The server, with a heartbeat from its start to its end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and begin to measure."""
        await super().startup(sockets)
        _print("threads at the start", json.dumps(_THREADS.count()))
        self._heartbeat = asyncio.create_task(_HEARTBEAT.run())
        _COLLECTIONS.longest_s = 0.0  # loading is over

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, and end to measure."""
        self._heartbeat.cancel()
        _print("threads at the end", json.dumps(_THREADS.count()))
        await super().shutdown(sockets)


def _print(name: str, value: str) -> None:
    print(f"{name}: {value}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    _THREADS = ThreadCounter()
    _COLLECTIONS = CollectionTimer()
    serving.Server = Server  # type: ignore[misc]
    try:
        main()
    finally:
        _print(
            "heartbeat",
            f"longest stall {_HEARTBEAT.longest.server_s * 1000:.0f} ms ({_HEARTBEAT.longest}); "
            f"late by at most {_HEARTBEAT.latest_s * 1000:.0f} ms, {_HEARTBEAT.num_late} times by "
            f"more than {_REPORTED_S * 1000:.0f} ms, {_HEARTBEAT.num_queued} times because other "
            "programs had the processors so long; longest garbage collection "
            f"{_COLLECTIONS.longest_s * 1000:.0f} ms",
        )
