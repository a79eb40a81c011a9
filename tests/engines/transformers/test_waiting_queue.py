from __future__ import annotations

import threading
from typing import cast

import pytest

from vlcore.engines.transformers.sequence import SequenceGroup
from vlcore.engines.transformers.waiting_queue import WaitingQueue
from vlcore.errors import EngineClosedError


class Answer:
    def __init__(self, is_finished: bool) -> None:
        self.is_finished = is_finished


def request(*, is_finished: bool = False) -> SequenceGroup:
    return cast("SequenceGroup", (Answer(is_finished),))


def everybody(requests: list[SequenceGroup]) -> bool:
    return True


def test_requests_are_taken_in_order_as_far_as_they_go_together() -> None:
    line = WaitingQueue()
    asked = [request() for _ in range(5)]
    for one in asked:
        line.add(one)
    assert line.take(lambda requests: len(requests) <= 2) == asked[:2]
    assert line.take(lambda requests: asked[3] not in requests) == asked[2:3]
    assert line.take(lambda requests: requests == [asked[4]]) == []  # nobody out of turn
    assert len(line) == 2
    assert line.take(everybody) == asked[3:]
    assert line.take(everybody) == []


def test_who_left_or_was_cancelled_is_not_taken() -> None:
    line = WaitingQueue()
    first, cancelled, last = request(), request(is_finished=True), request()
    for one in (first, cancelled, last):
        line.add(one)
    line.discard(first)
    line.discard(first)
    assert line.take(everybody) == [last]
    assert len(line) == 0


def test_waiting_ends_when_somebody_comes_or_there_is_other_work() -> None:
    line = WaitingQueue()
    assert line.wait_for_work(lambda: True)
    timer = threading.Timer(0.01, line.add, [request()])
    timer.start()
    assert line.wait_for_work(lambda: False)
    timer.join()


def test_a_closed_line_lets_nobody_in() -> None:
    line = WaitingQueue()
    waiting = request()
    line.add(waiting)
    timer = threading.Timer(0.01, line.close)
    timer.start()
    while line.wait_for_work(lambda: False):
        pass
    timer.join()
    with pytest.raises(EngineClosedError, match="engine was closed"):
        line.add(request())
    assert line.take(everybody) == [waiting]
