"""Waiting for what happens in another thread or process, for as long as a slow machine needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

TIMEOUT_S = 300
"""Of a wait that only a failing test waits out."""
_INTERVAL_S = 0.003


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    for _ in polls(condition):
        time.sleep(_INTERVAL_S)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true, and let the event loop run."""
    for _ in polls(condition):
        await asyncio.sleep(_INTERVAL_S)


def polls(condition: Callable[[], object]) -> Iterator[None]:
    """Yield whenever a condition is false, until it is true."""
    until_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until_s, "the condition did not become true"
        yield


def cpu_seconds(call: Callable[[], object]) -> float:
    """Measure the CPU time that a call takes in this thread, undisturbed by other programs.

    The least of three times counts: what the processor does for others only adds to one.
    """
    return min(_cpu_seconds_once(call) for _ in range(3))


def takes_at_most(limit_s: float, call: Callable[[], object]) -> bool:
    """Return whether the least of three CPU times is within a limit.

    Once one of them is, the others need not be measured.
    """
    return any(_cpu_seconds_once(call) <= limit_s for _ in range(3))


def _cpu_seconds_once(call: Callable[[], object]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started
