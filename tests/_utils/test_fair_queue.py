from __future__ import annotations

import asyncio

import pytest

from vlcore._utils.fair_queue import FairQueue, FairSemaphore


def filled(**items: str) -> FairQueue[str]:
    turns: FairQueue[str] = FairQueue()
    for owner, letters in items.items():
        for letter in letters:
            turns.add(owner, letter)
    return turns


def drained(turns: FairQueue[str]) -> str:
    taken = ""
    while turns:
        seen = turns.peek()
        taken += turns.pop()
        assert taken[-1] == seen
    return taken


def test_owners_take_turns() -> None:
    assert drained(filled(many="abcdef", few="x", two="yz")) == "axybzcdef"


def test_who_comes_later_has_the_next_turn_but_one() -> None:
    turns = filled(many="abcdef")
    assert turns.pop() == "a"
    turns.add("late", "x")
    assert drained(turns) == "bxcdef"


def test_a_discarded_item_is_gone_and_its_owner_with_the_last() -> None:
    turns = filled(many="abc", one="x")
    turns.discard("one", "x")
    turns.discard("many", "b")
    turns.discard("many", "x")
    turns.discard("nobody", "a")
    assert len(turns) == 2
    assert drained(turns) == "ac"
    assert not turns
    assert len(turns) == 0


def test_a_gate_lets_so_many_in_and_owners_take_turns() -> None:
    inside: list[str] = []
    order: list[str] = []

    async def enter(gate: FairSemaphore, owner: str) -> None:
        async with gate.hold(owner):
            inside.append(owner)
            order.append(owner)
            assert len(inside) <= 2
            await asyncio.sleep(0)
            inside.remove(owner)

    async def body() -> None:
        gate = FairSemaphore(2)
        await asyncio.gather(*(enter(gate, owner) for owner in "aaaaaabbc"))
        assert gate._num_free == 2

    asyncio.run(body())
    assert "".join(order) == "aaabcabaa"


def test_a_cancelled_wait_gives_its_place_to_the_next() -> None:
    async def wait(gate: FairSemaphore, entered: list[int], number: int) -> None:
        async with gate.hold(number):
            entered.append(number)

    async def body() -> None:
        gate, entered = FairSemaphore(1), list[int]()
        async with gate.hold("first"):
            tasks = [asyncio.create_task(wait(gate, entered, number)) for number in range(3)]
            await asyncio.sleep(0)
            tasks[0].cancel()  # while it waits
            await asyncio.sleep(0)
        tasks[1].cancel()  # its place has just come
        await asyncio.gather(*tasks, return_exceptions=True)
        assert entered == [2]
        assert gate._num_free == 1
        assert not gate._waiting

    asyncio.run(body())


def test_no_owner_holds_more_than_its_share() -> None:
    async def body() -> None:
        semaphore, held = FairSemaphore(4, max_per_owner=2), list[str]()
        is_over = asyncio.Event()

        async def hold(owner: str) -> None:
            async with semaphore.hold(owner):
                held.append(owner)
                await is_over.wait()

        tasks = [asyncio.create_task(hold(owner)) for owner in "aaaaab"]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert held == ["a", "a", "b"]
        tasks += [asyncio.create_task(hold("c")) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert held == ["a", "a", "b", "c"]
        is_over.set()
        await asyncio.gather(*tasks)
        assert sorted(held) == sorted("aaaaabcc")
        assert (semaphore._num_free, len(semaphore._num_held)) == (4, 0)

    asyncio.run(body())


def test_an_error_inside_gives_the_place_back() -> None:
    async def body() -> None:
        gate = FairSemaphore(1)
        with pytest.raises(KeyError):
            async with gate.hold("a"):
                raise KeyError
        assert gate._num_free == 1

    asyncio.run(body())
