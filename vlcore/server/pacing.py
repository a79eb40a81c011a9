"""``Pacer``: bounds the time that events of connections take on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable

from vlcore._utils.fair_queue import FairQueue

_INTERVAL_S = 0.004
_BUDGET_S = 0.001
"""Time for the events of all connections in each interval. The requests that begin with them take a
few times as long."""


class Pacer:
    """Calls functions within a time budget for each interval of a few milliseconds.

    What exceeds the budget is called in later intervals, in turn for each client. So neither a
    flood of requests nor many that arrive at once delay everything else on the event loop.

    Args:
        clock: Returns the current time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._waiting: FairQueue[Hashable, Callable[[], object]] = FairQueue()
        self._left_s = _BUDGET_S
        self._is_scheduled = False

    def call(self, client: Hashable, function: Callable[[], object]) -> bool:
        """Call a function now if there is time left, or in a later interval.

        Returns:
            Whether the function has been called.
        """
        if self._waiting or self._left_s <= 0:
            self.call_later(client, function)
            return False
        self._schedule()
        self._spend(function)
        return True

    def call_later(self, client: Hashable, function: Callable[[], object]) -> None:
        """Call a function in a later interval."""
        self._schedule()
        self._waiting.add(client, function)

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_later(_INTERVAL_S, self._begin_interval)

    def _begin_interval(self) -> None:
        self._is_scheduled = False
        self._left_s = _BUDGET_S
        if self._waiting:
            self._schedule()
        while self._waiting and self._left_s > 0:
            self._spend(self._waiting.pop())

    def _spend(self, function: Callable[[], object]) -> None:
        started = self._clock()
        try:
            function()
        finally:
            self._left_s -= self._clock() - started
