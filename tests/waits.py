"""Waiting for what happens in another thread or process, for as long as a slow machine needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TIMEOUT_S = 300
"""Of a wait that only a failing test waits out."""


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    until_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until_s, "the condition did not become true"
        time.sleep(0.005)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true, and let the event loop run."""
    until_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until_s, "the condition did not become true"
        await asyncio.sleep(0.001)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Measure the CPU time that a call takes in this thread, undisturbed by other programs.

    The least of three times counts: what the processor does for others only adds to one.
    """
    times = []
    for _ in range(3):
        started = time.thread_time()
        call()
        times.append(time.thread_time() - started)
    return min(times)
