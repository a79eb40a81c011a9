"""The clock of an event loop, which a test moves: no time limit is met by waiting for it."""

from __future__ import annotations

import asyncio


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
        """Let what waits for so many seconds, or fewer, happen now."""
        self._ahead_s += seconds
        self._loop.call_soon_threadsafe(lambda: None)  # the loop looks at its clock again
