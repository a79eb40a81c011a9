"""Requests that wait for a place in the running batch, in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from vlcore.engines.transformers.sequence import SequenceGroup
from vlcore.errors import EngineClosedError


class WaitingQueue:
    """Filled by whoever asks, emptied by the engine's thread."""

    def __init__(self) -> None:
        self._requests: deque[SequenceGroup] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._requests)

    def num_answers(self) -> int:
        """Count the answers of all requests."""
        with self._changed:
            return sum(map(len, self._requests))

    def join(self, request: SequenceGroup) -> None:
        """Stand at the end.

        Raises:
            EngineClosedError: the line was closed.
        """
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine was closed")
            self._requests.append(request)
            self._changed.notify()

    def leave(self, request: SequenceGroup) -> None:
        """Wait no longer, if it still does."""
        with self._changed, suppress(ValueError):
            self._requests.remove(request)

    def take(self, go_together: Callable[[list[SequenceGroup]], bool]) -> list[SequenceGroup]:
        """Take from the front as many as go together, and nobody out of turn."""
        taken: list[SequenceGroup] = []
        with self._changed:
            while self._requests:
                request = self._requests[0]
                if not all(answer.is_finished for answer in request):  # cancelled meanwhile
                    if not go_together([*taken, request]):
                        break
                    taken.append(request)
                self._requests.popleft()
        return taken

    def wait(self, is_busy: Callable[[], object]) -> bool:
        """Wait until somebody is there, unless there is other work; false once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed or is_busy())
            return not self._closed

    def close(self) -> None:
        """Let nobody in any more; who waits is still there to be told."""
        with self._changed:
            self._closed = True
            self._changed.notify()
