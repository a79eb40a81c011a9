"""The bounds on open connections and on large request bodies, in total and per client address."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from vlcore.server.settings import ServerSettings

_NUM_OTHER_FILES = 256
"""Open files that are left to downloads, the model and the refusal of connections."""
_MIN_CONNECTIONS = 16
_MAX_REFUSED = 64
"""Maximum number of refused connections that are kept open until the client has read why."""


class Connection(Protocol):
    """An open connection."""

    client: tuple[str, int] | None
    waits_since: float
    """Time since which the connection waits for a complete request."""

    @property
    def is_waiting(self) -> bool:
        """Whether the head or the body of a request is incomplete."""

    def close(self) -> None:
        """Close the connection."""


class Connections:
    """Admits connections, within the server's bounds.

    Args:
        settings: The server's limits.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._max_per_client = settings.max_connections_per_client
        self._max_connections = settings.max_connections
        if (max_files := _max_open_files()) is not None:
            self._max_connections = min(
                self._max_connections, max(_MIN_CONNECTIONS, max_files - _NUM_OTHER_FILES)
            )
        self._admitted: dict[str, dict[Connection, None]] = {}
        self._refused: set[Connection] = set()

    @property
    def num_admitted(self) -> int:
        """Number of admitted connections."""
        return sum(map(len, self._admitted.values()))

    def admit(self, connection: Connection) -> bool:
        """Admit a connection if there is room for it.

        At the bound of its client address, the connection of that address that has waited for a
        complete request for the longest time is closed.
        """
        own = self._admitted.setdefault(client_address(connection.client), {})
        if len(own) >= self._max_per_client:
            waiting = [other for other in own if other.is_waiting]
            if waiting:
                oldest = min(waiting, key=lambda other: other.waits_since)
                del own[oldest]
                oldest.close()
        if len(own) >= self._max_per_client or self.num_admitted >= self._max_connections:
            return False
        own[connection] = None
        return True

    def refuse(self, connection: Connection) -> bool:
        """Count a refused connection; return whether it may stay open to read its error."""
        self._refused.add(connection)
        return len(self._refused) <= _MAX_REFUSED

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._refused.discard(connection)
        address = client_address(connection.client)
        own = self._admitted.get(address, {})
        own.pop(connection, None)
        if not own:
            self._admitted.pop(address, None)


class Uploads:
    """Bounds the number of large request bodies in memory that are still incomplete.

    One client address has at most half of the slots, so that slow bodies delay no one else.

    Args:
        num_slots: Number of large bodies that are received at a time.
    """

    def __init__(self, num_slots: int) -> None:
        self._slots = asyncio.Semaphore(num_slots)
        self._max_per_client = max(1, num_slots // 2)
        self._client_slots: dict[str, asyncio.Semaphore] = {}
        self._num_users: Counter[str] = Counter()

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it."""
        own = self._client_slots.setdefault(client, asyncio.Semaphore(self._max_per_client))
        self._num_users[client] += 1
        try:
            async with own, self._slots:
                yield
        finally:
            self._num_users[client] -= 1
            if not self._num_users[client]:
                del self._num_users[client], self._client_slots[client]


def client_address(client: tuple[str, int] | None) -> str:
    """Return the IP address of a client; an IPv6 address without its interface part.

    A network of IPv6 gives each client 2**64 addresses.
    """
    host = client[0] if client else ""
    return ":".join(host.split(":")[:4]) if host.count(":") > 3 and "." not in host else host


def _max_open_files() -> int | None:
    """Raise the limit on open files to the one that the system allows, and return it."""
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # macOS allows less than it states
            pass
    return None if soft == resource.RLIM_INFINITY else soft
