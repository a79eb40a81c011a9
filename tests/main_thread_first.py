"""``--main-thread-first``: other threads continue only while the main thread waits.

A test that waits for one condition and asserts another one, which another thread fulfils a moment
later, passes on nearly every machine. With this option it fails. Before each line of this
repository that another thread executes, a wait of the test looks at its condition, and the main
thread runs until it waits again.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import waits

_ROOT = Path(__file__).parents[1]
_TRACED = tuple(f"{_ROOT / name}/" for name in ("vlcore", "plugins", "examples", "tests"))
"""Directories whose code is delayed, as is uvicorn's, which the server's code extends."""
_WAITING = (
    *("/threading.py", "/selectors.py", "/subprocess.py", "/waits.py"),
    *("/socket.py", "/_backends/sync.py", "/wire.py", "/server_client.py"),
)
"""Files in whose functions a thread waits: for locks, event loops, processes and conditions, and
for sockets, which are read in C code."""
_PER_LINE_S = 0.05
"""How long the main thread may run before another thread continues: it may wait elsewhere."""
_PER_WAIT_S = 5.0
"""How long other threads are delayed in all, from the begin of a test or of one of its waits."""


class MainThreadFirst:
    """A plugin of pytest that delays all threads that are started from now on."""

    def __init__(self) -> None:
        self._main_id = threading.main_thread().ident or 0
        self._left_s = 0.0
        self._num_waits = self._num_polls = 0
        self._polls = waits.polls
        vars(waits).update(polls=self._count_polls, _INTERVAL_S=0.0002)
        threading.settrace(self._trace_call)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Give each test time of its own."""
        self._left_s = _PER_WAIT_S
        return (yield)

    def _count_polls(self, condition: Callable[[], object]) -> Iterator[None]:
        def counted() -> object:
            self._num_polls += 1
            return condition()

        if threading.get_ident() != self._main_id:
            yield from self._polls(condition)
            return
        self._left_s = _PER_WAIT_S
        self._num_waits += 1
        try:
            yield from self._polls(counted)
        finally:
            self._num_waits -= 1

    def _trace_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        is_delayed = path.startswith(_TRACED) or "/uvicorn/" in path
        is_own = path in (__file__, waits.__file__)
        return self._trace_line if is_delayed and not is_own else None

    def _trace_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event in ("line", "return") and self._left_s > 0:
            started = time.monotonic()
            self._let_main_thread_run(started + _PER_LINE_S)
            self._left_s -= time.monotonic() - started
        return self._trace_line

    def _let_main_thread_run(self, until_s: float) -> None:
        num_polls = self._num_polls
        time.sleep(0.0001)  # a thread that was notified wakes up
        while time.monotonic() < until_s:
            has_polled = not self._num_waits or self._num_polls > num_polls + 1
            path = sys._current_frames()[self._main_id].f_code.co_filename
            if has_polled and path.endswith(_WAITING):
                return
            time.sleep(0.0002)
