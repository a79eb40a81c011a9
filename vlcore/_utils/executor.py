"""``DaemonExecutor``: a thread pool whose threads can be abandoned if they hang."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from vlcore._utils.fork import ForkGuard

_P = ParamSpec("_P")
_T = TypeVar("_T")

_Call = tuple[Future[Any], Callable[[], Any]]


class DaemonExecutor(Executor):
    """Runs calls in a fixed number of daemon threads.

    ``concurrent.futures.ThreadPoolExecutor`` joins its threads when the interpreter exits, and
    therefore waits for a call that never returns.

    Args:
        num_threads: number of threads.
        name: prefix of the threads' names.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads = num_threads
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._fork_guard: ForkGuard | None = None
        self._lock = threading.Lock()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run a call when a thread is free.

        Raises:
            EngineClosedError: this process is a fork of the one that started the threads.
        """
        if self._fork_guard is not None:
            self._fork_guard.check()
        with self._lock:
            if not self._threads:
                self._start()
        future: Future[_T] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    async def stop(self, timeout_s: float) -> bool:
        """Wait for the submitted calls, and return whether they finished in time."""
        for _ in self._threads:
            self._calls.put(None)
        deadline = time.monotonic() + timeout_s
        # Polled, because an executor that could join the threads accepts no calls at exit.
        while any(thread.is_alive() for thread in self._threads):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    def _start(self) -> None:
        self._fork_guard = ForkGuard("image encoder")
        for number in range(self._num_threads):
            name = f"{self._name}-{number}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del item, future, call  # would keep the inputs and results of the last call alive
