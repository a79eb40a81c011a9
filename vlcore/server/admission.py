"""``Admission``: so many requests at a time, and a time to come again for the others."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vlcore.server.errors import ApiError, stopping

_MEMORY = 0.1
"""The share of the latest request in the mean duration."""


class Admission:
    """Counts the requests that are answered or wait.

    Args:
        max_requests: how many at a time.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._mean_s = 1.0
        self.num_requests = 0
        self.is_stopping = False

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            ApiError: there is none (429), or the server is stopping (503).
        """
        if self.is_stopping:
            raise stopping()
        if self.num_requests >= self._max_requests:
            raise ApiError(
                429,
                "too_many_requests",
                f"the server answers {self._max_requests} requests at a time (max_requests): ask "
                "again later",
                headers={"Retry-After": str(self._seconds_until_free())},
            )
        self.num_requests += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.num_requests -= 1
            self._mean_s += _MEMORY * (time.monotonic() - started - self._mean_s)

    def _seconds_until_free(self) -> int:
        """Guess when the next place is free: requests end evenly over the time that one takes."""
        return max(1, math.ceil(self._mean_s / self._max_requests))
