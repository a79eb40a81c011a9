from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from waits import TIMEOUT_S

from vlcore._utils.executor import DaemonExecutor


def test_calls_run_in_order_in_separate_threads() -> None:
    executor = DaemonExecutor(1, "vlcore-test")
    calls = [executor.submit(int, number) for number in range(20)]
    assert [call.result(timeout=TIMEOUT_S) for call in calls] == list(range(20))
    assert executor.submit(threading.get_ident).result(timeout=TIMEOUT_S) != threading.get_ident()
    assert asyncio.run(executor.stop(TIMEOUT_S))


def test_an_error_belongs_to_its_call() -> None:
    executor = DaemonExecutor(1, "vlcore-test")
    failing = executor.submit(lambda: 1 // 0)
    leaving = executor.submit(sys.exit)
    with pytest.raises(ZeroDivisionError):
        failing.result(timeout=TIMEOUT_S)
    with pytest.raises(SystemExit):
        leaving.result(timeout=TIMEOUT_S)
    assert executor.submit(lambda: "alive").result(timeout=TIMEOUT_S) == "alive"
    assert asyncio.run(executor.stop(TIMEOUT_S))


def test_a_cancelled_call_is_not_made() -> None:
    executor = DaemonExecutor(1, "vlcore-test")
    gate = threading.Event()
    executor.submit(gate.wait, TIMEOUT_S)
    made: list[int] = []
    waiting = executor.submit(made.append, 1)
    assert waiting.cancel()
    gate.set()
    assert asyncio.run(executor.stop(TIMEOUT_S))
    assert made == []


def test_stopping_finishes_the_submitted_calls() -> None:
    executor = DaemonExecutor(2, "vlcore-test")
    gate = threading.Event()
    calls = [executor.submit(gate.wait, TIMEOUT_S) for _ in range(6)]

    async def body() -> None:
        stopping = asyncio.create_task(executor.stop(TIMEOUT_S))
        await asyncio.sleep(0)
        assert not any(call.done() for call in calls)
        gate.set()
        assert await stopping

    asyncio.run(body())
    assert all(call.result() for call in calls)
    assert not [t for t in threading.enumerate() if t.name.startswith("vlcore-test")]


def test_stopping_does_not_wait_for_a_call_that_hangs() -> None:
    executor = DaemonExecutor(1, "vlcore-test")
    gate = threading.Event()
    executor.submit(gate.wait, TIMEOUT_S)
    assert not asyncio.run(executor.stop(0.01))
    gate.set()
    assert asyncio.run(executor.stop(TIMEOUT_S))


def test_a_call_that_hangs_does_not_block_the_exit_of_the_interpreter() -> None:
    program = """
import threading
from vlcore._utils.executor import DaemonExecutor
DaemonExecutor(1, "vlcore-test").submit(threading.Event().wait)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=TIMEOUT_S)
