"""``ImageQueue`` and ``Scheduler``: which images wait, and which device encodes them next.

Both are used from one event loop. An image that several requests need is encoded once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from vlcore._utils.executor import DaemonExecutor
from vlcore._utils.fair_queue import FairQueue
from vlcore.vision.batch_executor import BatchExecutor, Outcome
from vlcore.vision.device_runner import DeviceRunner
from vlcore.vision.embedding_cache import EmbeddingCache
from vlcore.vision.model import ImageRows
from vlcore.vision.prepared_image import PreparedImage
from vlcore.vision.stats import Meter

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class ImageJob:
    """An image that waits to be encoded, or is being encoded."""

    image: PreparedImage
    outcome: asyncio.Future[Outcome]
    queued_at: float = field(default_factory=time.perf_counter)
    owners: set[Hashable] = field(default_factory=set)
    """The requests that need the image."""
    num_waiters: int = 0
    """Number of callers that await the outcome."""
    is_started: bool = False
    """Whether the image was removed from the queue."""


class ImageQueue:
    """A queue of images that is fair to the requests that they belong to.

    Args:
        max_batch_size: maximum number of images in a batch.
        meter: counts shared and cancelled images, and the time they wait.
    """

    def __init__(self, max_batch_size: int, meter: Meter) -> None:
        self._max_batch_size = max_batch_size
        self._meter = meter
        self._jobs: dict[str, ImageJob] = {}
        """The jobs that wait or are being encoded, by the key of the image."""
        self._waiting: FairQueue[Hashable, ImageJob] = FairQueue()

    def __len__(self) -> int:
        """Return the number of images that wait."""
        return sum(not job.is_started for job in self._jobs.values())

    def add(self, image: PreparedImage, owner: Hashable) -> ImageJob:
        """Add an image, or share the job of an equal image that was added before."""
        job = self._jobs.get(image.key)
        if job is None:
            job = ImageJob(image, asyncio.get_running_loop().create_future())
            self._jobs[image.key] = job
        else:
            self._meter.count("num_cache_hits")
        if not job.is_started and owner not in job.owners:
            job.owners.add(owner)
            self._waiting.add(owner, job)
        return job

    async def wait(self, job: ImageJob) -> Outcome:
        """Wait for the outcome of a job, and remove the job if its last waiter is cancelled."""
        job.num_waiters += 1
        try:
            # Shielded, because the cancellation of one request must not affect the others.
            return await asyncio.shield(job.outcome)
        finally:
            job.num_waiters -= 1
            if not job.num_waiters and not job.is_started:
                self._remove(job)
                del self._jobs[job.image.key]
                self._meter.count("num_cancelled")

    def has_full_batch(self, max_tiles: int) -> bool:
        """Return whether enough images wait for a batch of the maximum size."""
        tiles = [job.image.num_tiles for job in self._jobs.values() if not job.is_started]
        return len(tiles) >= self._max_batch_size or sum(tiles) >= max_tiles

    def next_batch(self, max_tiles: int, shared_by: int = 1) -> list[ImageJob]:
        """Remove the images of the next batch from the queue, in turn for each request.

        Args:
            max_tiles: maximum number of tiles in a batch of more than one image.
            shared_by: number of idle devices, each of which gets an equal share.
        """
        batch: list[ImageJob] = []
        num_tiles = 0
        max_size = min(self._max_batch_size, -(-len(self) // shared_by))
        while self._waiting and len(batch) < max_size:
            num_tiles += self._waiting.peek().image.num_tiles
            if batch and num_tiles > max_tiles:
                break
            batch.append(job := self._pop())
            self._meter.add_time("queue_wait_s", time.perf_counter() - job.queued_at)
        return batch

    def complete(self, job: ImageJob, outcome: Outcome) -> None:
        """Set the outcome of a job, for all its waiters."""
        del self._jobs[job.image.key]
        job.outcome.set_result(outcome)

    def fail_waiting(self, error: Exception) -> None:
        """Complete the jobs that are not started with an error."""
        while self._waiting:
            self.complete(self._pop(), error)

    def fail_all(self, error: Exception) -> None:
        """Complete all jobs with an error."""
        self.fail_waiting(error)
        for job in list(self._jobs.values()):
            self.complete(job, error)

    def _pop(self) -> ImageJob:
        job = self._waiting.pop()
        job.is_started = True
        self._remove(job)
        return job

    def _remove(self, job: ImageJob) -> None:
        for owner in job.owners:
            self._waiting.discard(owner, job)


class _Device:
    """A device, the threads in which its batches run, and the number of running batches."""

    def __init__(self, runner: DeviceRunner, max_tiles: int, meter: Meter, name: str) -> None:
        self.execute = BatchExecutor(runner, max_tiles, meter)
        self.threads = DaemonExecutor(runner.num_concurrent_batches, name)
        self.num_concurrent_batches = runner.num_concurrent_batches
        self.num_running = 0


class Scheduler:
    """Starts the next batch on every device that is free.

    An idle device gets the waiting images at once, shared with the other idle devices. A busy
    device that can copy the next batch in advance gets one only if a full batch waits, because a
    smaller one may still grow.

    Args:
        runners: one for each device.
        queue: the waiting images.
        cache: stores the embeddings.
        max_tiles: maximum number of tiles in a batch of more than one image.
        meter: counts the forward passes and their outcomes.
    """

    def __init__(
        self,
        runners: Sequence[DeviceRunner],
        queue: ImageQueue,
        cache: EmbeddingCache,
        *,
        max_tiles: int,
        meter: Meter,
    ) -> None:
        self._queue = queue
        self._cache = cache
        self._meter = meter
        self._devices = [
            _Device(runner, max_tiles, meter, f"vlcore-vision-{number}")
            for number, runner in enumerate(runners)
        ]
        self._running: set[asyncio.Task[None]] = set()
        self._is_scheduled = False

    @property
    def max_tiles(self) -> int:
        """Current maximum number of tiles in a batch, on the device where it is lowest."""
        return min(device.execute.max_tiles for device in self._devices)

    def schedule(self) -> None:
        """Start batches in the next iteration of the event loop.

        Images that are added in this iteration can share a batch.
        """
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._start_batches)

    async def close(self, timeout_s: float) -> None:
        """Wait for the running batches, and stop the threads; one that hangs is abandoned."""
        deadline = time.monotonic() + timeout_s
        if self._running:
            _, hanging = await asyncio.wait(self._running, timeout=timeout_s)
            if hanging:
                logger.error(
                    "the vision model did not finish %d batch(es) within %g s: their threads are "
                    "abandoned",
                    len(hanging),
                    timeout_s,
                )
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)
        for device in self._devices:
            await device.threads.stop(max(0.0, deadline - time.monotonic()))

    def _start_batches(self) -> None:
        self._is_scheduled = False
        for device in sorted(self._devices, key=lambda device: device.num_running):
            while batch := self._next_batch(device):
                device.num_running += 1
                task = asyncio.create_task(self._encode(device, batch))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    def _next_batch(self, device: _Device) -> list[ImageJob]:
        max_tiles = device.execute.max_tiles
        if device.num_running == 0:
            num_idle = sum(other.num_running == 0 for other in self._devices)
            return self._queue.next_batch(max_tiles, shared_by=num_idle)
        can_start = device.num_running < device.num_concurrent_batches
        if can_start and self._queue.has_full_batch(max_tiles):
            return self._queue.next_batch(max_tiles)
        return []

    async def _encode(self, device: _Device, batch: Sequence[ImageJob]) -> None:
        loop = asyncio.get_running_loop()
        inputs = [job.image.inputs for job in batch]
        try:
            outcomes = await loop.run_in_executor(device.threads, device.execute, inputs)
        finally:
            device.num_running -= 1
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, ImageRows):
                self._meter.count("num_encoded")
                self._cache.put(job.image.key, outcome)
            else:
                self._meter.count("num_failures")
            self._queue.complete(job, outcome)
        self._start_batches()
