from __future__ import annotations

import asyncio

import pytest

from vlcore._utils.fair_queue import FairQueue, FairSemaphore


def filled(**items: str) -> FairQueue[str, str]:
    queue: FairQueue[str, str] = FairQueue()
    for owner, letters in items.items():
        for letter in letters:
            queue.add(owner, letter)
    return queue


def drained(queue: FairQueue[str, str]) -> str:
    taken = ""
    while queue:
        seen = queue.peek()
        taken += queue.pop()
        assert taken[-1] == seen
    return taken


def test_owners_take_turns() -> None:
    assert drained(filled(many="abcdef", few="x", two="yz")) == "axybzcdef"


def test_a_later_owner_is_served_in_the_next_round() -> None:
    queue = filled(many="abcdef")
    assert queue.pop() == "a"
    queue.add("late", "x")
    assert drained(queue) == "bxcdef"


def test_an_owner_without_items_is_removed() -> None:
    queue = filled(many="abc", one="x")
    queue.discard("one", "x")
    queue.discard("many", "b")
    queue.discard("many", "x")
    queue.discard("absent", "a")
    assert len(queue) == 2
    assert drained(queue) == "ac"
    assert not queue
    assert len(queue) == 0


def test_permits_are_limited_and_given_to_owners_in_turn() -> None:
    inside: list[str] = []
    order: list[str] = []

    async def enter(semaphore: FairSemaphore, owner: str) -> None:
        async with semaphore.hold(owner):
            inside.append(owner)
            order.append(owner)
            assert len(inside) <= 2
            await asyncio.sleep(0)
            inside.remove(owner)

    async def body() -> None:
        semaphore = FairSemaphore(2)
        await asyncio.gather(*(enter(semaphore, owner) for owner in "aaaaaabbc"))
        assert semaphore._num_free == 2

    asyncio.run(body())
    assert "".join(order) == "aaabcabaa"


def test_a_cancelled_wait_passes_its_permit_on() -> None:
    async def wait(semaphore: FairSemaphore, entered: list[int], number: int) -> None:
        async with semaphore.hold(number):
            entered.append(number)

    async def body() -> None:
        semaphore, entered = FairSemaphore(1), list[int]()
        async with semaphore.hold("first"):
            tasks = [asyncio.create_task(wait(semaphore, entered, number)) for number in range(3)]
            await asyncio.sleep(0)
            tasks[0].cancel()  # while it waits
            await asyncio.sleep(0)
        tasks[1].cancel()  # its place has just come
        await asyncio.gather(*tasks, return_exceptions=True)
        assert entered == [2]
        assert semaphore._num_free == 1
        assert not semaphore._waiting

    asyncio.run(body())


def test_an_error_releases_the_permit() -> None:
    async def body() -> None:
        semaphore = FairSemaphore(1)
        with pytest.raises(KeyError):
            async with semaphore.hold("a"):
                raise KeyError
        assert semaphore._num_free == 1

    asyncio.run(body())
