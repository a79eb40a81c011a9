"""``DownloadSlots``: the bound on concurrent downloads, which lets every request make progress."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import TypeVar

from vlcore._utils.fair_queue import FairQueue

_MAX_REQUESTS = 128
"""Maximum number of requests that download at the same time."""
_MAX_CLIENT_REQUESTS = 64
"""Maximum number of these for one client."""
_MAX_SHARED = 64
"""Maximum number of downloads in addition to one for each of these requests."""
_MAX_CLIENT_SHARED = 32
"""Maximum number of these for one client."""

_K = TypeVar("_K", bound=Hashable)
_Key = tuple[Hashable, Hashable]
"""A client and one of its requests."""


class DownloadSlots:
    """Slots of downloads, including complete ones whose bytes are still needed.

    A request has a slot of its own, so that it never waits for the downloads of other requests from
    servers that do not answer, and takes further ones from a pool that all requests share.
    """

    def __init__(self) -> None:
        self._waiting: FairQueue[_Key, asyncio.Future[None]] = FairQueue()
        self._num_held: Counter[_Key] = Counter()
        """Number of slots of each request."""
        self._num_requests: Counter[Hashable] = Counter()
        """Number of requests of each client that hold slots."""
        self._num_shared: Counter[Hashable] = Counter()
        """Number of slots that each client has from the shared pool."""

    @asynccontextmanager
    async def hold(self, client: Hashable, request: Hashable) -> AsyncIterator[None]:
        """Wait for a slot, and hold it within the context."""
        key = client, request
        slot = asyncio.get_running_loop().create_future()
        self._waiting.add(key, slot)
        self._grant()
        try:
            await slot
        except asyncio.CancelledError:
            self._waiting.discard(key, slot)
            if not slot.cancelled():  # the slot was granted before the cancellation
                self._release(key)
            raise
        try:
            yield
        finally:
            self._release(key)

    def _grant(self) -> None:
        if self._num_requests.total() >= _MAX_REQUESTS and self._num_shared.total() >= _MAX_SHARED:
            return
        while (granted := self._waiting.pop_if(self._may_hold)) is not None:
            key, slot = granted
            if not slot.done():
                self._add(key, 1)
                slot.set_result(None)

    def _release(self, key: _Key) -> None:
        self._add(key, -1)
        self._grant()

    def _add(self, key: _Key, number: int) -> None:
        """Count a slot that is granted (1) or released (-1)."""
        num_others = self._num_held[key] - (number < 0)
        _add(self._num_shared if num_others else self._num_requests, key[0], number)
        _add(self._num_held, key, number)

    def _may_hold(self, key: _Key) -> bool:
        if self._num_held[key]:
            return _is_free(self._num_shared, key[0], _MAX_SHARED, _MAX_CLIENT_SHARED)
        return _is_free(self._num_requests, key[0], _MAX_REQUESTS, _MAX_CLIENT_REQUESTS)


def _add(counts: Counter[_K], key: _K, number: int) -> None:
    counts[key] += number
    if not counts[key]:
        del counts[key]


def _is_free(counts: Counter[Hashable], client: Hashable, limit: int, client_limit: int) -> bool:
    return counts.total() < limit and counts[client] < client_limit
