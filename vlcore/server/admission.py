"""Admission control: a bound on concurrent requests, with a Retry-After for the others."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vlcore.server.errors import ApiError, stopping_error

_SMOOTHING = 0.1
"""Weight of the latest request in the moving average of the request duration."""


class Admission:
    """Counts the requests that are running or waiting, and refuses those above the bound.

    Args:
        max_requests: The number of requests admitted at a time.
    """

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._mean_duration_s = 1.0
        self.num_requests = 0
        self.is_stopping = False

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Hold a permit for one request.

        Raises:
            ApiError: No permit is free (429), or the server is stopping (503).
        """
        self.check()
        self.num_requests += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.num_requests -= 1
            self._mean_duration_s += _SMOOTHING * (
                time.monotonic() - started - self._mean_duration_s
            )

    def check(self) -> None:
        """Check that a permit is free.

        Raises:
            ApiError: No permit is free (429), or the server is stopping (503).
        """
        if self.is_stopping:
            raise stopping_error()
        if self.num_requests >= self._max_requests:
            raise ApiError(
                429,
                "too_many_requests",
                f"the server handles {self._max_requests} requests at a time (max_requests): "
                "retry later",
                headers={"Retry-After": str(self._seconds_until_free())},
            )

    def _seconds_until_free(self) -> int:
        """Estimate when the next permit is free, assuming that requests end at an even rate."""
        return max(1, math.ceil(self._mean_duration_s / self._max_requests))
