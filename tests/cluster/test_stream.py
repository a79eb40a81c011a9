from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from waits import until

from vlcore.cluster.stream import gather_ready


def test_items_that_arrived_together_are_yielded_together() -> None:
    async def body() -> None:
        gate = asyncio.Event()

        async def items() -> AsyncGenerator[int]:
            yield 1
            await gate.wait()
            for item in (2, 3, 4):
                yield item

        batches = gather_ready(items())
        assert await anext(batches) == (1,)
        gate.set()
        assert await anext(batches) == (2, 3, 4)
        with pytest.raises(StopAsyncIteration):
            await anext(batches)

    asyncio.run(body())


def test_a_batch_has_a_maximum_size() -> None:
    async def items() -> AsyncGenerator[int]:
        for item in range(600):
            yield item

    async def body() -> None:
        batches = [batch async for batch in gather_ready(items())]
        assert [item for batch in batches for item in batch] == list(range(600))
        assert max(map(len, batches)) == 256

    asyncio.run(body())


def test_an_error_follows_the_items_before_it() -> None:
    async def items() -> AsyncGenerator[int]:
        yield 1
        raise ValueError("broken")

    async def body() -> None:
        batches = gather_ready(items())
        assert await anext(batches) == (1,)
        with pytest.raises(ValueError, match="broken"):
            await anext(batches)

    asyncio.run(body())


def test_a_stream_without_items_ends() -> None:
    async def items() -> AsyncGenerator[int]:
        if not asyncio.get_running_loop().is_running():
            yield 0

    async def body() -> None:
        assert [batch async for batch in gather_ready(items())] == []

    asyncio.run(body())


@pytest.mark.parametrize("ends_by", ["closing", "cancelling"])
def test_the_items_are_closed_with_the_result(ends_by: str) -> None:
    async def body() -> None:
        is_closed = False

        async def items() -> AsyncGenerator[int]:
            nonlocal is_closed
            try:
                yield 1
                await asyncio.Event().wait()
            finally:
                is_closed = True

        batches = gather_ready(items())
        assert await anext(batches) == (1,)
        if ends_by == "closing":
            await batches.aclose()
        else:
            waiting = asyncio.ensure_future(anext(batches))
            await asyncio.sleep(0)
            waiting.cancel()
            await until(waiting.cancelled)
        assert is_closed

    asyncio.run(body())
