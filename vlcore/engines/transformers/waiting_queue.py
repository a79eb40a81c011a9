"""``WaitingQueue``: requests that wait to enter the running batch, in order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from vlcore._utils.fork import ForkGuard
from vlcore.engines.transformers.sequence import SequenceGroup
from vlcore.errors import EngineClosedError


class WaitingQueue:
    """A thread-safe queue that callers fill and the engine's thread empties."""

    def __init__(self) -> None:
        self._groups: deque[SequenceGroup] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._fork_guard = ForkGuard("engine")

    def __len__(self) -> int:
        return len(self._groups)

    def num_sequences(self) -> int:
        """Count the sequences of all waiting requests."""
        with self._changed:
            return sum(map(len, self._groups))

    def add(self, group: SequenceGroup) -> None:
        """Append the sequences of a request.

        Raises:
            EngineClosedError: the queue was closed, or this process is a fork of the engine's.
        """
        self._fork_guard.check()
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine was closed")
            self._groups.append(group)
            self._changed.notify()

    def discard(self, group: SequenceGroup) -> None:
        """Remove a request, if it is still in the queue."""
        if self._fork_guard.is_child:  # another thread may have held the lock during the fork
            return
        with self._changed, suppress(ValueError):
            self._groups.remove(group)

    def take(self, fits: Callable[[list[SequenceGroup]], bool]) -> list[SequenceGroup]:
        """Remove and return requests from the front, for as long as ``fits`` accepts them.

        The order of arrival is kept: a request that does not fit also holds back those after it.
        Requests that were cancelled are dropped.
        """
        taken: list[SequenceGroup] = []
        with self._changed:
            while self._groups:
                group = self._groups[0]
                if not all(sequence.is_finished for sequence in group):
                    if not fits([*taken, group]):
                        break
                    taken.append(group)
                self._groups.popleft()
        return taken

    def wait_for_work(self, is_busy: Callable[[], object]) -> bool:
        """Block until a request waits or ``is_busy`` is true; return False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._groups or self._closed or is_busy())
            return not self._closed

    def close(self) -> None:
        """Refuse further requests; those that wait can still be taken."""
        if self._fork_guard.is_child:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
