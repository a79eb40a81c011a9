"""An embedded engine whose progress the test decides, however fast or slow the machine is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from waits import TIMEOUT_S, until

from vlcore.engines.transformers import TransformersEngine


class Hold:
    """Lets the engine compute some forward passes, and then none until it is released.

    Args:
        num_forwards: how many it lets through first.
    """

    def __init__(self, num_forwards: int) -> None:
        self.num_started = 0
        """Forward passes that were started, the one that is held included."""
        self._num_left = num_forwards
        self._is_released = False
        self._changed = threading.Condition()

    def allow(self, num_forwards: int) -> None:
        """Let the engine compute some more forward passes."""
        with self._changed:
            self._num_left += num_forwards
            self._changed.notify_all()

    def release(self) -> None:
        """Hold the engine no longer."""
        with self._changed:
            self._is_released = True
            self._changed.notify_all()

    def wait_until_held(self) -> None:
        """Wait until the engine has used up what it was allowed, and asks for more."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._num_left < 0, TIMEOUT_S)

    def enter(self, *_: Any) -> None:
        """Start a forward pass, in the thread of the engine."""
        with self._changed:
            self.num_started += 1
            self._num_left -= 1
            self._changed.notify_all()
            assert self._changed.wait_for(
                lambda: self._is_released or self._num_left >= 0, TIMEOUT_S
            )


def is_idle(engine: Any) -> bool:
    """Return whether the engine's thread waits for a request, and nothing is left of earlier ones.

    An empty batch does not show that: a request is in neither the queue nor the batch during its
    first forward pass, and leaves the batch before its part of the cache is cleared and counted.
    """
    assert isinstance(engine, TransformersEngine)
    waiting: Any = engine._waiting._changed
    return bool(waiting._waiters)  # of the condition; adding a request wakes the thread


async def until_idle(engine: Any) -> None:
    """Wait until the engine is idle, and let the event loop run."""
    await until(lambda: is_idle(engine))


@contextmanager
def held(engine: Any, num_forwards: int = 0) -> Iterator[Hold]:
    """Hold an engine after some forward passes, until the end of the block or until it closes."""
    assert isinstance(engine, TransformersEngine)
    hold = Hold(num_forwards)
    hook = engine._model.register_forward_pre_hook(hold.enter)
    close = engine._waiting.close

    def close_and_release() -> None:
        close()
        hold.release()

    engine._waiting.close = close_and_release  # type: ignore[method-assign]
    try:
        yield hold
    finally:
        hold.release()
        hook.remove()
        engine._waiting.close = close  # type: ignore[method-assign]
