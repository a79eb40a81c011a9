"""Images that wait for a device, each once, whoever asked for it.

Lives on one event loop. Knows nothing of devices or files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from dataclasses import dataclass, field

from vlcore.encoder_stats import Meter
from vlcore.forward import Outcome
from vlcore.preparation import PreparedImage
from vlcore.turns import Turns


@dataclass(eq=False)
class Job:
    """An image that somebody waits for."""

    image: PreparedImage
    outcome: asyncio.Future[Outcome]
    asked: float = field(default_factory=time.perf_counter)
    owners: set[Hashable] = field(default_factory=set)
    """Requests in whose turn it may come."""
    num_waiters: int = 0
    started: bool = False
    """Left the queue, for the device or because the encoder was closed."""


class ImageQueue:
    """The images of all requests, which take turns.

    Args:
        max_batch_size: images in a batch at most.
        meter: counts shared and cancelled images, and times the wait.
    """

    def __init__(self, max_batch_size: int, meter: Meter) -> None:
        self._max_batch_size = max_batch_size
        self._meter = meter
        self._jobs: dict[str, Job] = {}
        """By the image's key: those that wait, and those on a device."""
        self._waiting: Turns[Job] = Turns()

    def __len__(self) -> int:
        """Images that wait."""
        return sum(not job.started for job in self._jobs.values())

    def ask(self, image: PreparedImage, owner: Hashable) -> Job:
        """Put an image into the queue, or join those who wait for an equal one."""
        job = self._jobs.get(image.key)
        if job is None:
            job = Job(image, asyncio.get_running_loop().create_future())
            self._jobs[image.key] = job
        else:
            self._meter.count("num_cache_hits")
        if not job.started and owner not in job.owners:
            job.owners.add(owner)
            self._waiting.add(owner, job)
        return job

    async def wait(self, job: Job) -> Outcome:
        """Wait for an image; one that nobody waits for any more leaves the queue."""
        job.num_waiters += 1
        try:
            # Shielded: one request's cancellation must not take the rows from another.
            return await asyncio.shield(job.outcome)
        finally:
            job.num_waiters -= 1
            if not job.num_waiters and not job.started:
                self._leave(job)
                del self._jobs[job.image.key]
                self._meter.count("num_cancelled")

    def fills(self, max_tiles: int) -> bool:
        """Whether a whole batch waits, which gains nothing by waiting longer."""
        tiles = [job.image.num_tiles for job in self._jobs.values() if not job.started]
        return len(tiles) >= self._max_batch_size or sum(tiles) >= max_tiles

    def next_batch(self, max_tiles: int, shared_by: int = 1) -> list[Job]:
        """Take what fits into a forward, request by request.

        Args:
            max_tiles: what fits, if it is more than one image.
            shared_by: devices that are free, of which each takes an equal part.
        """
        batch: list[Job] = []
        num_tiles = 0
        max_size = min(self._max_batch_size, -(-len(self) // shared_by))
        while self._waiting and len(batch) < max_size:
            num_tiles += self._waiting.peek().image.num_tiles
            if batch and num_tiles > max_tiles:
                break
            batch.append(job := self._next())
            self._meter.time("queue_wait_s", time.perf_counter() - job.asked)
        return batch

    def settle(self, job: Job, outcome: Outcome) -> None:
        """Give everybody who waits for an image its outcome."""
        del self._jobs[job.image.key]
        job.outcome.set_result(outcome)

    def refuse_waiting(self, error: Exception) -> None:
        """Give an error to those whose image was not started."""
        while self._waiting:
            self.settle(self._next(), error)

    def refuse_all(self, error: Exception) -> None:
        """Give an error to everybody."""
        self.refuse_waiting(error)
        for job in list(self._jobs.values()):
            self.settle(job, error)

    def _next(self) -> Job:
        job = self._waiting.pop()
        job.started = True
        self._leave(job)
        return job

    def _leave(self, job: Job) -> None:
        for owner in job.owners:
            self._waiting.discard(owner, job)
