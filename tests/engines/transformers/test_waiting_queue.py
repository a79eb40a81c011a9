from __future__ import annotations

import threading
from typing import cast

import pytest

from vlcore.engines.transformers.sequence import SequenceGroup
from vlcore.engines.transformers.waiting_queue import WaitingQueue
from vlcore.errors import EngineClosedError


class FakeSequence:
    def __init__(self, is_finished: bool) -> None:
        self.is_finished = is_finished


def request(*, is_finished: bool = False) -> SequenceGroup:
    return cast("SequenceGroup", (FakeSequence(is_finished),))


def always(requests: list[SequenceGroup]) -> bool:
    return True


def test_requests_are_taken_in_order_while_they_fit() -> None:
    queue = WaitingQueue()
    groups = [request() for _ in range(5)]
    for group in groups:
        queue.add(group)
    assert queue.take(lambda requests: len(requests) <= 2) == groups[:2]
    assert queue.take(lambda requests: groups[3] not in requests) == groups[2:3]
    assert (
        queue.take(lambda requests: requests == [groups[4]]) == []
    )  # the order of arrival is kept
    assert len(queue) == 2
    assert queue.take(always) == groups[3:]
    assert queue.take(always) == []


def test_discarded_and_cancelled_requests_are_not_taken() -> None:
    queue = WaitingQueue()
    first, cancelled, last = request(), request(is_finished=True), request()
    for group in (first, cancelled, last):
        queue.add(group)
    queue.discard(first)
    queue.discard(first)
    assert queue.take(always) == [last]
    assert len(queue) == 0


def test_waiting_ends_when_a_request_is_added_or_there_is_other_work() -> None:
    queue = WaitingQueue()
    assert queue.wait_for_work(lambda: True)
    timer = threading.Timer(0.01, queue.add, [request()])
    timer.start()
    assert queue.wait_for_work(lambda: False)
    timer.join()


def test_a_closed_queue_refuses_requests() -> None:
    queue = WaitingQueue()
    waiting = request()
    queue.add(waiting)
    timer = threading.Timer(0.01, queue.close)
    timer.start()
    while queue.wait_for_work(lambda: False):
        pass
    timer.join()
    with pytest.raises(EngineClosedError, match="engine was closed"):
        queue.add(request())
    assert queue.take(always) == [waiting]
