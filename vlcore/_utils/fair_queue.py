"""``FairQueue`` and ``FairSemaphore``: they serve several owners in turn.

An owner with many items does not delay the others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

_T = TypeVar("_T")


class FairQueue(Generic[_T]):
    """A queue that returns one item of each owner in turn."""

    def __init__(self) -> None:
        self._items: OrderedDict[Hashable, deque[_T]] = OrderedDict()
        """The items by owner; the first owner is the next one."""

    def __bool__(self) -> bool:
        return bool(self._items)

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def add(self, owner: Hashable, item: _T) -> None:
        """Append an item to those of its owner."""
        self._items.setdefault(owner, deque()).append(item)

    def peek(self) -> _T:
        """Return the next item without removing it; the queue must not be empty."""
        return next(iter(self._items.values()))[0]

    def pop(self) -> _T:
        """Remove and return the next item; the queue must not be empty."""
        owner, items = self._items.popitem(last=False)
        item = items.popleft()
        if items:
            self._items[owner] = items
        return item

    def discard(self, owner: Hashable, item: _T) -> None:
        """Remove an item, if it is in the queue."""
        items = self._items.get(owner, ())
        if isinstance(items, deque) and item in items:
            items.remove(item)
            if not items:
                del self._items[owner]


class FairSemaphore:
    """A semaphore whose permits are given to the waiting owners in turn.

    Args:
        size: number of permits.
    """

    def __init__(self, size: int) -> None:
        self._num_free = size
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    @asynccontextmanager
    async def hold(self, owner: Hashable) -> AsyncIterator[None]:
        """Wait for a permit, and hold it within the context."""
        if self._num_free:
            self._num_free -= 1
        else:
            permit = asyncio.get_running_loop().create_future()
            self._waiting.add(owner, permit)
            try:
                await permit
            except asyncio.CancelledError:
                self._waiting.discard(owner, permit)
                if not permit.cancelled():  # the permit was granted before the cancellation
                    self._release()
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        while self._waiting:
            permit = self._waiting.pop()
            if not permit.done():
                permit.set_result(None)
                return
        self._num_free += 1
