"""``FairQueue`` and ``FairSemaphore``: they serve several owners in turn.

An owner with many items does not delay the others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

_Owner = TypeVar("_Owner", bound=Hashable)
_T = TypeVar("_T")

current_client: ContextVar[Hashable] = ContextVar("current_client")
"""The client for which the current task works, such as its address or key. A server sets it for
each request, so that no client takes more than its share by sending many requests."""


class FairQueue(Generic[_Owner, _T]):
    """A queue that returns one item of each owner in turn."""

    def __init__(self) -> None:
        self._items: OrderedDict[_Owner, deque[_T]] = OrderedDict()
        """The items by owner; the first owner is the next one."""

    def __bool__(self) -> bool:
        return bool(self._items)

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def add(self, owner: _Owner, item: _T) -> None:
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

    def pop_if(self, is_allowed: Callable[[_Owner], bool]) -> tuple[_Owner, _T] | None:
        """Remove and return the next owner and item whose owner is allowed, if there is one."""
        owner = next(filter(is_allowed, self._items), None)
        if owner is None:
            return None
        self._items.move_to_end(owner, last=False)
        return owner, self.pop()

    def discard(self, owner: _Owner, item: _T) -> None:
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
        self._waiting: FairQueue[Hashable, asyncio.Future[None]] = FairQueue()

    @asynccontextmanager
    async def hold(self, owner: Hashable) -> AsyncIterator[None]:
        """Wait for a permit, and hold it within the context."""
        permit = asyncio.get_running_loop().create_future()
        self._waiting.add(owner, permit)
        self._grant()
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
        self._num_free += 1
        self._grant()

    def _grant(self) -> None:
        while self._num_free and self._waiting:
            permit = self._waiting.pop()
            if not permit.done():
                self._num_free -= 1
                permit.set_result(None)
