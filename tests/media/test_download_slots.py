from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vlcore.media import download_slots
from vlcore.media.download_slots import DownloadSlots


class Downloads:
    """Downloads that last until a test ends them."""

    def __init__(self) -> None:
        self.slots = DownloadSlots()
        self.running: list[str] = []
        self._tasks: dict[asyncio.Task[None], str] = {}

    async def start(self, client: str, request: str, number: int) -> int:
        """Start downloads of a request; return how many of its downloads run."""
        for _ in range(number):
            self._tasks[asyncio.create_task(self._run(client, request))] = request
        for _ in range(4):
            await asyncio.sleep(0)
        return self.running.count(request)

    async def end(self, request: str) -> None:
        """Cancel the downloads of a request."""
        tasks = [task for task, name in self._tasks.items() if name == request]
        for task in tasks:
            task.cancel()
            del self._tasks[task]
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _run(self, client: str, request: str) -> None:
        async with self.slots.hold(client, request):
            self.running.append(request)
            try:
                await asyncio.Event().wait()
            finally:
                self.running.remove(request)

    @asynccontextmanager
    async def ended(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for request in set(self._tasks.values()):
                await self.end(request)
            counts = self.slots._num_held, self.slots._num_requests, self.slots._num_shared
            assert not any(counts)


def test_a_request_never_waits_for_the_downloads_of_others() -> None:
    async def body() -> None:
        downloads = Downloads()
        async with downloads.ended():
            assert await downloads.start("a", "greedy", 200) == 33
            for number in range(20):  # whether they have the same address or not
                assert await downloads.start("a", f"other {number}", 1) == 1
            assert await downloads.start("b", "b", 40) == 33
            assert await downloads.start("c", "c", 16) == 1

    asyncio.run(body())


def test_a_free_slot_of_the_pool_goes_to_the_waiting_requests_in_turn() -> None:
    async def body() -> None:
        downloads = Downloads()
        async with downloads.ended():
            await downloads.start("a", "first", 40)
            assert await downloads.start("a", "second", 20) == 1
            assert await downloads.start("a", "third", 20) == 1
            await downloads.end("first")
            assert [downloads.running.count(name) for name in ("second", "third")] == [17, 17]

    asyncio.run(body())


def test_the_number_of_requests_is_bounded() -> None:
    async def body() -> None:
        downloads = Downloads()
        async with downloads.ended():
            for number in range(download_slots._MAX_CLIENT_REQUESTS):
                assert await downloads.start("a", str(number), 1) == 1
            assert await downloads.start("a", "last", 1) == 0
            assert await downloads.start("b", "b", 1) == 1
            await downloads.end("7")
            assert downloads.running.count("last") == 1

    asyncio.run(body())
