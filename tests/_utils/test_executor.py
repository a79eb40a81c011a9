from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from vlcore._utils.executor import DaemonExecutor


def test_calls_run_in_order_in_threads_of_their_own() -> None:
    executor = DaemonExecutor(1, "vlcore-test")
    calls = [executor.submit(int, number) for number in range(20)]
    assert [call.result(timeout=5) for call in calls] == list(range(20))
    assert executor.submit(threading.get_ident).result(timeout=5) != threading.get_ident()
    assert asyncio.run(executor.stop(5))


def test_an_error_belongs_to_its_call() -> None:
    executor = DaemonExecutor(1, "vlcore-test")
    failing = executor.submit(lambda: 1 // 0)
    leaving = executor.submit(sys.exit)
    with pytest.raises(ZeroDivisionError):
        failing.result(timeout=5)
    with pytest.raises(SystemExit):
        leaving.result(timeout=5)
    assert executor.submit(lambda: "alive").result(timeout=5) == "alive"
    assert asyncio.run(executor.stop(5))


def test_a_cancelled_call_is_not_made() -> None:
    executor = DaemonExecutor(1, "vlcore-test")
    gate = threading.Event()
    executor.submit(gate.wait, 5)
    made: list[int] = []
    waiting = executor.submit(made.append, 1)
    assert waiting.cancel()
    gate.set()
    assert asyncio.run(executor.stop(5))
    assert made == []


def test_stopping_lets_what_was_submitted_finish() -> None:
    executor = DaemonExecutor(2, "vlcore-test")
    calls = [executor.submit(time.sleep, 0.01) for _ in range(6)]
    assert asyncio.run(executor.stop(5))
    assert all(call.done() for call in calls)
    assert not [t for t in threading.enumerate() if t.name.startswith("vlcore-test")]


def test_stopping_does_not_wait_for_a_call_that_hangs() -> None:
    executor = DaemonExecutor(1, "vlcore-test")
    gate = threading.Event()
    executor.submit(gate.wait, 30)
    assert not asyncio.run(executor.stop(0.01))
    gate.set()


def test_a_call_that_hangs_does_not_keep_the_interpreter() -> None:
    program = """
import threading
from vlcore._utils.executor import DaemonExecutor
DaemonExecutor(1, "vlcore-test").submit(threading.Event().wait)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
