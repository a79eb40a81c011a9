from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest
from waits import TIMEOUT_S

from vlcore._utils.event_loop import LoopMailboxes, LoopThread
from vlcore.errors import EngineClosedError


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    made = LoopThread("test-loop")
    yield made
    made.close()


class Numbers:
    """Counts on a loop, and knows when it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.threads: set[str] = set()

    async def count(self, stop: int, *, fail: bool = False) -> AsyncGenerator[int]:
        try:
            for number in range(stop):
                self.threads.add(threading.current_thread().name)
                await asyncio.sleep(0)
                yield number
            if fail:
                raise KeyError("at the end")
        finally:
            await asyncio.sleep(0)
            self.closed.set()


async def name_of_thread() -> str:
    return threading.current_thread().name


async def fail() -> None:
    raise KeyError("broken")


async def forever(started: threading.Event, cancelled: threading.Event) -> None:
    started.set()
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.set()


def test_coroutines_run_in_the_thread_of_the_loop(loop: LoopThread) -> None:
    assert loop.run(name_of_thread()) == "test-loop"
    assert asyncio.run(loop.wait(name_of_thread())) == "test-loop"


def test_exceptions_are_raised_for_the_caller(loop: LoopThread) -> None:
    with pytest.raises(KeyError, match="broken"):
        loop.run(fail())
    with pytest.raises(KeyError, match="broken"):
        asyncio.run(loop.wait(fail()))


def test_generators_are_iterated_to_their_end(loop: LoopThread) -> None:
    numbers = Numbers()
    assert list(loop.iterate(numbers.count(4))) == [0, 1, 2, 3]
    assert numbers.closed.is_set()
    assert numbers.threads == {"test-loop"}
    assert list(loop.iterate(numbers.count(0))) == []


def test_generators_are_iterated_from_another_loop(loop: LoopThread) -> None:
    numbers = Numbers()

    async def body() -> list[int]:
        return [number async for number in loop.aiterate(numbers.count(4))]

    assert asyncio.run(body()) == [0, 1, 2, 3]
    assert numbers.closed.is_set()
    assert numbers.threads == {"test-loop"}


def test_calls_on_the_loop_itself_do_not_switch_threads(
    loop: LoopThread,
) -> None:
    numbers = Numbers()
    turns: list[str] = []

    async def body() -> list[int]:
        asyncio.get_running_loop().call_soon(turns.append, "another task")
        assert await loop.wait(name_of_thread()) == "test-loop"
        turns.append("awaited")  # at once: no task of its own was waited for
        return [number async for number in loop.aiterate(numbers.count(4))]

    assert loop.run(body()) == [0, 1, 2, 3]
    assert turns == ["awaited", "another task"]
    assert numbers.closed.is_set()


def test_the_loop_does_not_wait_for_itself(loop: LoopThread) -> None:
    numbers = Numbers()

    async def body() -> None:
        with pytest.raises(RuntimeError, match="must await"):
            loop.run(name_of_thread())
        with pytest.raises(RuntimeError, match="must await"):
            next(loop.iterate(numbers.count(3)))

    loop.run(body())
    assert loop.run(name_of_thread()) == "test-loop"


def test_exceptions_of_generators_are_raised_for_the_caller(loop: LoopThread) -> None:
    seen: list[int] = []
    with pytest.raises(KeyError, match="at the end"):
        seen.extend(loop.iterate(Numbers().count(2, fail=True)))

    async def body() -> None:
        async for number in loop.aiterate(Numbers().count(2, fail=True)):
            seen.append(number)  # noqa: PERF401

    with pytest.raises(KeyError, match="at the end"):
        asyncio.run(body())
    assert seen == [0, 1, 0, 1]


def test_closing_the_iterator_closes_the_generator(loop: LoopThread) -> None:
    numbers = Numbers()
    for number in loop.iterate(numbers.count(9)):
        if number == 1:
            break
    assert numbers.closed.wait(TIMEOUT_S)


@pytest.mark.parametrize("where", ["another loop", "the loop itself"])
def test_closing_the_asynchronous_iterator_closes_the_generator(
    loop: LoopThread, where: str
) -> None:
    numbers = Numbers()

    async def body() -> None:
        iterator = loop.aiterate(numbers.count(9))
        assert await anext(iterator) == 0
        await iterator.aclose()
        assert numbers.closed.is_set()

    run = loop.run if where == "the loop itself" else asyncio.run
    run(body())


def test_cancelling_from_another_loop_cancels(loop: LoopThread) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def body() -> None:
        task = asyncio.create_task(loop.wait(forever(started, cancelled)))
        assert await asyncio.to_thread(started.wait, TIMEOUT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(body())
    assert cancelled.wait(TIMEOUT_S)


def test_cancelling_an_iteration_from_another_loop_closes_the_generator(loop: LoopThread) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def hangs() -> AsyncGenerator[int]:
        yield 0
        await forever(started, cancelled)

    async def body() -> None:
        async def consume() -> None:
            async for _ in loop.aiterate(hangs()):
                pass

        task = asyncio.create_task(consume())
        assert await asyncio.to_thread(started.wait, TIMEOUT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cancelled.is_set()

    asyncio.run(body())


def test_closing_stops_the_thread_and_may_be_repeated() -> None:
    loop = LoopThread("test-closing")
    assert loop.run(name_of_thread()) == "test-closing"
    loop.close()
    loop.close()
    assert "test-closing" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(EngineClosedError, match="closed"):
        loop.run(name_of_thread())


def test_an_open_iterator_ends_when_the_loop_is_closed() -> None:
    loop = LoopThread("test-closing")
    numbers = Numbers()
    iterator = loop.iterate(numbers.count(9))
    assert next(iterator) == 0
    loop.close()
    assert numbers.closed.is_set()
    with pytest.raises(EngineClosedError, match="closed"):
        next(iterator)


def test_an_iterator_may_be_closed_after_the_loop() -> None:
    loop = LoopThread("test-closing")
    iterator = loop.iterate(Numbers().count(9))
    assert next(iterator) == 0
    loop.close()
    iterator.close()

    async def body() -> None:
        other = LoopThread("test-closing")
        waiting = other.aiterate(Numbers().count(9))
        assert await anext(waiting) == 0
        other.close()
        await waiting.aclose()

    asyncio.run(body())


def test_closing_cancels_running_coroutines() -> None:
    loop = LoopThread("test-closing")
    started, cancelled = threading.Event(), threading.Event()
    outcome: list[BaseException] = []

    def call() -> None:
        try:
            loop.run(forever(started, cancelled))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert started.wait(TIMEOUT_S)
    loop.close()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert cancelled.is_set()
    assert isinstance(outcome[0], EngineClosedError)


def test_an_iterator_that_is_collected_on_the_loop_does_not_wait_for_itself(
    loop: LoopThread,
) -> None:
    closed = threading.Event()

    async def numbers() -> AsyncGenerator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.set()

    iteration = loop.iterate(numbers())
    assert next(iteration) == 1

    async def drop() -> None:
        iteration.close()

    loop.run(drop())
    assert closed.wait(TIMEOUT_S)


def test_coroutines_submitted_while_the_loop_closes_end() -> None:
    loop = LoopThread("closing")
    outcomes: list[str] = []

    async def one() -> int:
        return 1

    def submit() -> None:
        try:
            while True:
                loop.run(one())
        except EngineClosedError:
            outcomes.append("closed")

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    loop.close()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert outcomes == ["closed"] * 4


def test_submitted_coroutines_run_without_being_awaited() -> None:
    loop = LoopThread("test")

    async def body() -> int:
        return 7

    assert loop.submit(body()).result(TIMEOUT_S) == 7
    seen = threading.Event()
    loop.call_soon(seen.set)
    assert seen.wait(TIMEOUT_S)
    loop.close()
    coroutine = body()
    with pytest.raises(EngineClosedError):
        loop.submit(coroutine)
    loop.call_soon(lambda: 1 / 0)  # never called


def test_a_mailbox_wakes_its_loop_once_for_all_that_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        wakes: list[object] = []
        call_soon = loop.call_soon_threadsafe

        def count(callback: Callable[..., object], *arguments: Any) -> asyncio.Handle:
            wakes.append(callback)
            return call_soon(callback, *arguments)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        arrived: list[int] = []
        mailboxes = LoopMailboxes()
        first, second = mailboxes.sender(arrived.append), mailboxes.sender(arrived.append)

        def send() -> None:  # while the loop waits for this thread to end
            for number in range(100):
                (first, second)[number % 2](number)

        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
        await asyncio.sleep(0)
        first(100)
        await asyncio.sleep(0)
        return arrived, len(wakes)

    arrived, num_wakes = asyncio.run(body())
    assert arrived == list(range(101))
    assert num_wakes == 2


def test_a_loop_that_sends_wakes_the_receiver_after_its_callbacks(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> tuple[list[int], list[int]]:
        receiver = asyncio.get_running_loop()
        wakes: list[object] = []
        call_soon = receiver.call_soon_threadsafe
        arrived: list[int] = []
        send = LoopMailboxes(loop).sender(arrived.append)
        num_wakes: list[int] = []
        is_sent = asyncio.Event()

        def count(callback: Callable[..., object], *arguments: Any) -> asyncio.Handle:
            wakes.append(callback)
            return call_soon(callback, *arguments)

        async def send_one(number: int) -> None:
            send(number)
            num_wakes.append(len(wakes))

        async def send_all() -> None:
            await asyncio.gather(*map(send_one, range(10)))
            await asyncio.sleep(0)
            num_wakes.append(len(wakes))
            call_soon(is_sent.set)

        monkeypatch.setattr(receiver, "call_soon_threadsafe", count)
        sending = loop.submit(send_all())
        await is_sent.wait()
        sending.result(TIMEOUT_S)
        send(10)  # from the receiver's own thread
        await asyncio.sleep(0)
        return arrived, [*num_wakes, len(wakes)]

    arrived, num_wakes = asyncio.run(body())
    assert arrived == list(range(11))
    assert num_wakes == [0] * 10 + [1, 2]


def test_a_mailbox_of_a_closed_loop_refuses() -> None:
    async def body() -> Callable[[int], None]:
        send = LoopMailboxes().sender(print)
        send(1)
        return send

    loop = asyncio.new_event_loop()
    send = loop.run_until_complete(body())
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            send(2)
    del loop
    gc.collect()
    with pytest.raises(RuntimeError, match="loop was closed"):
        send(3)
