"""Owners take turns, so that one who brings much holds nobody up."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """A queue that gives one item of each owner, then the next of each."""

    def __init__(self) -> None:
        self._items: OrderedDict[Hashable, deque[_T]] = OrderedDict()
        """Of each owner; the first owner's turn is next."""

    def __bool__(self) -> bool:
        return bool(self._items)

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def add(self, owner: Hashable, item: _T) -> None:
        """Put an item behind the others of its owner."""
        self._items.setdefault(owner, deque()).append(item)

    def peek(self) -> _T:
        """Look at the next item; the queue must hold one."""
        return next(iter(self._items.values()))[0]

    def pop(self) -> _T:
        """Take the next item; the queue must hold one."""
        owner, items = self._items.popitem(last=False)
        item = items.popleft()
        if items:
            self._items[owner] = items
        return item

    def discard(self, owner: Hashable, item: _T) -> None:
        """Take an item out, if it is there."""
        items = self._items.get(owner, ())
        if isinstance(items, deque) and item in items:
            items.remove(item)
            if not items:
                del self._items[owner]


class FairSemaphore:
    """Lets so many in at a time; the owners of those who wait take turns."""

    def __init__(self, size: int) -> None:
        self._num_free = size
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @asynccontextmanager
    async def place(self, owner: Hashable) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        if self._num_free:
            self._num_free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.add(owner, turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._waiting.discard(owner, turn)
                if not turn.cancelled():  # the place came together with the cancellation
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._num_free += 1
