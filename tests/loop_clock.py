"""The clock of an event loop, which a test moves: no time limit is met by waiting for it."""

from __future__ import annotations

import asyncio

from waits import TIMEOUT_S


class LoopClock:
    """Takes over the time of an event loop, for as long as the loop lives.

    Args:
        loop: one that runs in another thread, or the running one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._time = loop.time
        self._ahead_s = 0.0
        loop.time = self.time  # type: ignore[method-assign]

    def time(self) -> float:
        """Return the time of the loop, in seconds."""
        return self._time() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Let what waits for so many seconds, or fewer, happen now.

        From another thread, that includes the time limits of what the loop is just processing: the
        clock moves after them. Such a limit would otherwise begin in the future, and never end.
        """
        if asyncio._get_running_loop() is self._loop:
            self._ahead_s += seconds
        else:
            moving = asyncio.run_coroutine_threadsafe(self._advance_later(seconds), self._loop)
            moving.result(TIMEOUT_S)

    async def _advance_later(self, seconds: float) -> None:
        for _ in range(3):  # a callback, and the first step of a task that it creates
            await asyncio.sleep(0)
        self._ahead_s += seconds
