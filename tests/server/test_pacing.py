from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from vlcore.server.pacing import Pacer


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an asynchronous test."""

    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def pass_time(self) -> None:
        self.seconds += 1


@on_loop
async def test_calls_share_the_time_of_an_interval() -> None:
    calls: list[int] = []
    pacer = Pacer(Clock())
    assert all(pacer.call("a", lambda: calls.append(1)) for _ in range(100))
    assert len(calls) == 100


@on_loop
async def test_calls_beyond_the_time_of_an_interval_run_in_later_ones() -> None:
    calls: list[str] = []
    clock = Clock()
    pacer = Pacer(clock)

    def call(name: str) -> bool:
        def run() -> None:
            clock.pass_time()
            calls.append(name)

        return pacer.call(name[0], run)

    assert [call(name) for name in ("a1", "a2", "a3", "b1")] == [True, False, False, False]
    num_calls = [len(calls)]
    while len(calls) < 4:
        await asyncio.sleep(0)
        num_calls.append(len(calls))
    assert sorted(set(num_calls)) == [1, 2, 3, 4]  # one at a time
    assert calls == ["a1", "a2", "b1", "a3"]  # in turn for each client


@on_loop
async def test_the_next_interval_has_its_own_time() -> None:
    pacer = Pacer(clock := Clock())
    assert pacer.call("a", clock.pass_time)
    waiting = asyncio.Event()
    assert not pacer.call("a", waiting.set)
    await waiting.wait()
    assert pacer.call("b", clock.pass_time)


@on_loop
async def test_a_call_that_fails_does_not_lose_the_others() -> None:
    calls: list[str] = []
    clock = Clock()
    pacer = Pacer(clock)
    pacer.call("a", clock.pass_time)
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    pacer.call("a", lambda: calls[0])
    pacer.call("a", lambda: calls.append("next"))
    while not calls:
        await asyncio.sleep(0)
    assert len(errors) == 1
