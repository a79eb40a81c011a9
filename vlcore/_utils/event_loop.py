"""``LoopThread``: an event loop in a background thread; ``LoopMailboxes``: items for others."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import AsyncGeneratorType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from vlcore._utils.fork import ForkGuard
from vlcore.errors import EngineClosedError

_T = TypeVar("_T")
_CLOSED = "the pipeline was closed: create a new one"


class LoopThread:
    """Runs coroutines on a background event loop, for synchronous and asynchronous callers.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._executor = ThreadPoolExecutor(thread_name_prefix=name)
        self._loop.set_default_executor(self._executor)
        self._fork_guard = ForkGuard("pipeline")
        self._lock = threading.RLock()  # reentrant: the garbage collector may close a stream
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine and block until it ends; an interruption cancels it.

        Raises:
            EngineClosedError: the loop was closed before the coroutine ended.
            RuntimeError: the caller is on the loop, which would wait for itself.
        """
        try:
            self.check_elsewhere()
        except RuntimeError:
            coroutine.close()
            raise
        future = self.submit(coroutine)
        try:
            return future.result()
        except CancelledError as error:
            raise EngineClosedError(_CLOSED) from error
        except BaseException:
            future.cancel()
            raise
        finally:
            del future  # an error refers to this frame, which must not refer to the error

    async def wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine and await it; cancelling the caller cancels the coroutine.

        Raises:
            EngineClosedError: the loop was closed before the coroutine ended.
        """
        if self.runs_here():
            return await coroutine
        future = self.submit(coroutine)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # the caller's own cancellation
                raise
            raise EngineClosedError(_CLOSED) from error
        finally:
            del future  # as in run()

    def iterate(self, generator: AsyncGenerator[_T]) -> Generator[_T]:
        """Iterate an asynchronous generator; closing the iterator closes it."""
        try:
            while True:
                try:
                    yield self.run(_next(generator))
                except StopAsyncIteration:
                    return
        finally:
            if threading.current_thread() is self._thread:
                # The garbage collector runs in any thread, and the loop cannot wait for itself.
                self._loop.create_task(_close(generator))
            elif self._is_usable:
                self.run(_close(generator))

    def aiterate(self, generator: AsyncGenerator[_T]) -> AsyncGenerator[_T]:
        """Return a generator for the caller's event loop; closing it closes the given one.

        A caller on this loop gets the given generator itself.
        """
        return generator if self.runs_here() else self._aiterate_elsewhere(generator)

    async def _aiterate_elsewhere(self, generator: AsyncGenerator[_T]) -> AsyncGenerator[_T]:
        try:
            while True:
                try:
                    yield await self.wait(_next(generator))
                except StopAsyncIteration:
                    return
        finally:
            if self._is_usable:
                await self.wait(_close(generator))

    def submit(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Start a coroutine without waiting for it.

        Raises:
            EngineClosedError: the loop was closed, or this process is a fork of the loop's.
        """
        try:
            self.check_process()
        except EngineClosedError:
            coroutine.close()
            raise
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise EngineClosedError(_CLOSED)

    def check_process(self) -> None:
        """Check that this process has the loop's thread.

        Raises:
            EngineClosedError: this process is a fork of the one that created the loop.
        """
        self._fork_guard.check()

    def check_elsewhere(self) -> None:
        """Check that the caller is not on the loop, which would wait for itself.

        Raises:
            RuntimeError: the caller is on the loop.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a coroutine on the pipeline's own loop must await: use ainfer, astream_infer, "
                "achat or astream_chat there, and close the pipeline elsewhere"
            )

    def runs_here(self) -> bool:
        """Return whether the caller is on the loop."""
        return threading.current_thread() is self._thread

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call a function on the loop, unless the loop was closed."""
        if self._fork_guard.is_child:
            return
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(callback)

    def close(self) -> None:
        """Cancel the running coroutines, stop the loop and join its thread.

        In a forked child, there is no thread, and this has no effect.
        """
        if self._fork_guard.is_child:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        # Coroutines that were submitted before the flag was set have a task when this runs.
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._executor.shutdown()
        self._loop.close()

    @property
    def _is_usable(self) -> bool:
        return not self._closed and not self._fork_guard.is_child

    async def _finish(self) -> None:
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


class LoopMailboxes:
    """Delivers items from other threads to the event loops of their receivers.

    A loop is woken once for all items that arrive before it runs. With one ``call_soon_threadsafe``
    per item, an engine that generates tokens for many requests would spend much time on wake-ups.

    Args:
        sending_loop: the loop that sends the items, if one does. It wakes a receiver after its
            current callbacks rather than at the first item: the two threads would otherwise take
            turns at Python's lock, and wake each other for every few items.
    """

    def __init__(self, sending_loop: LoopThread | None = None) -> None:
        self._sending_loop = sending_loop
        self._mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = (
            WeakKeyDictionary()
        )

    def sender(self, take: Callable[[_T], object]) -> Callable[[_T], None]:
        """Return a thread-safe function that calls ``take`` on the running loop, in order.

        The function raises RuntimeError if the loop was closed.
        """
        loop = asyncio.get_running_loop()
        mailbox = self._mailboxes.setdefault(loop, _Mailbox(loop, self._sending_loop))

        def send(item: _T) -> None:
            mailbox.put(partial(take, item))

        return send


class _Mailbox:
    def __init__(self, loop: asyncio.AbstractEventLoop, sending_loop: LoopThread | None) -> None:
        self._loop = ref(loop)  # weak, as the loop is the key of this mailbox
        self._sending_loop = sending_loop
        self._calls: deque[Callable[[], object]] = deque()
        self._is_due = False

    def put(self, call: Callable[[], object]) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed():
            raise RuntimeError("the event loop was closed")
        # Before the flag is looked at: a delivery clears the flag before it looks at the calls.
        self._calls.append(call)
        if self._is_due:
            return
        self._is_due = True
        if self._sending_loop is not None and self._sending_loop.runs_here():
            asyncio.get_running_loop().call_soon(self._wake)
        else:
            loop.call_soon_threadsafe(self._deliver)

    def _wake(self) -> None:
        loop = self._loop()
        if loop is not None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_due = False
        for _ in range(len(self._calls)):
            self._calls.popleft()()


async def _next(generator: AsyncGenerator[_T]) -> _T:
    return await anext(generator)


async def _close(generator: AsyncGenerator[Any]) -> None:
    # A cancelled step may still be unwinding, and nothing signals its end.
    while isinstance(generator, AsyncGeneratorType) and generator.ag_running:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await generator.aclose()
