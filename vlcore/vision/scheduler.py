"""Images that wait for a device, each once, whoever asked for it.

Lives on one event loop. Knows nothing of devices or files.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from vlcore._utils.executor import DaemonExecutor
from vlcore._utils.fair_queue import FairQueue
from vlcore.vision.batch_executor import BatchExecutor, Outcome
from vlcore.vision.device_runner import DeviceRunner
from vlcore.vision.preprocessing import PreparedImage
from vlcore.vision.stats import Meter


@dataclass(eq=False)
class ImageJob:
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
        self._jobs: dict[str, ImageJob] = {}
        """By the image's key: those that wait, and those on a device."""
        self._waiting: FairQueue[ImageJob] = FairQueue()

    def __len__(self) -> int:
        """Images that wait."""
        return sum(not job.started for job in self._jobs.values())

    def ask(self, image: PreparedImage, owner: Hashable) -> ImageJob:
        """Put an image into the queue, or join those who wait for an equal one."""
        job = self._jobs.get(image.key)
        if job is None:
            job = ImageJob(image, asyncio.get_running_loop().create_future())
            self._jobs[image.key] = job
        else:
            self._meter.count("num_cache_hits")
        if not job.started and owner not in job.owners:
            job.owners.add(owner)
            self._waiting.add(owner, job)
        return job

    async def wait(self, job: ImageJob) -> Outcome:
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

    def next_batch(self, max_tiles: int, shared_by: int = 1) -> list[ImageJob]:
        """Take what fits into a forward, request by request.

        Args:
            max_tiles: what fits, if it is more than one image.
            shared_by: devices that are free, of which each takes an equal part.
        """
        batch: list[ImageJob] = []
        num_tiles = 0
        max_size = min(self._max_batch_size, -(-len(self) // shared_by))
        while self._waiting and len(batch) < max_size:
            num_tiles += self._waiting.peek().image.num_tiles
            if batch and num_tiles > max_tiles:
                break
            batch.append(job := self._next())
            self._meter.time("queue_wait_s", time.perf_counter() - job.asked)
        return batch

    def settle(self, job: ImageJob, outcome: Outcome) -> None:
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

    def _next(self) -> ImageJob:
        job = self._waiting.pop()
        job.started = True
        self._leave(job)
        return job

    def _leave(self, job: ImageJob) -> None:
        for owner in job.owners:
            self._waiting.discard(owner, job)


logger = logging.getLogger(__name__)


class _Device:
    """A replica, the threads in which its batches run, and how many do."""

    def __init__(self, replica: DeviceRunner, max_tiles: int, meter: Meter, name: str) -> None:
        self.forward = BatchExecutor(replica, max_tiles, meter)
        self.threads = DaemonExecutor(replica.num_lanes, name)
        self.num_lanes = replica.num_lanes
        self.num_running = 0


class Scheduler:
    """Gives every device that is free the next batch.

    A device that is idle takes whatever waits, shared with the other idle ones. One that computes
    takes a batch ahead, where it can, only when a whole one waits: a smaller one may still grow.

    Args:
        replicas: what encodes.
        queue: what waits.
        settle: takes the outcome of each image.
        max_tiles: how many tiles one forward takes at most, if it takes more than one image.
        meter: counts the forwards.
    """

    def __init__(
        self,
        replicas: Sequence[DeviceRunner],
        queue: ImageQueue,
        settle: Callable[[ImageJob, Outcome], None],
        *,
        max_tiles: int,
        meter: Meter,
    ) -> None:
        self._queue = queue
        self._settle = settle
        self._devices = [
            _Device(replica, max_tiles, meter, f"vlcore-vision-{number}")
            for number, replica in enumerate(replicas)
        ]
        self._running: set[asyncio.Task[None]] = set()
        self._is_due = False

    @property
    def max_tiles(self) -> int:
        """The bound of a batch now, on the device that has least memory left."""
        return min(device.forward.max_tiles for device in self._devices)

    def serve(self) -> None:
        """Take what waits, once those who are asking at this moment have asked."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._hand_out)

    async def close(self, timeout_s: float) -> None:
        """Wait for the batches on the devices, and free the threads; leave one that hangs."""
        deadline = time.monotonic() + timeout_s
        if self._running:
            _, hanging = await asyncio.wait(self._running, timeout=timeout_s)
            if hanging:
                logger.error(
                    "the vision model did not finish %d batch(es) in %g s: their threads are left "
                    "behind",
                    len(hanging),
                    timeout_s,
                )
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)
        for device in self._devices:
            left = max(0.0, deadline - time.monotonic())
            await device.threads.stop(left)

    def _hand_out(self) -> None:
        self._is_due = False
        for device in sorted(self._devices, key=lambda device: device.num_running):
            while batch := self._next_batch(device):
                device.num_running += 1
                task = asyncio.create_task(self._encode(device, batch))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    def _next_batch(self, device: _Device) -> list[ImageJob]:
        max_tiles = device.forward.max_tiles
        if device.num_running == 0:
            num_idle = sum(other.num_running == 0 for other in self._devices)
            return self._queue.next_batch(max_tiles, shared_by=num_idle)
        if device.num_running < device.num_lanes and self._queue.fills(max_tiles):
            return self._queue.next_batch(max_tiles)
        return []

    async def _encode(self, device: _Device, batch: Sequence[ImageJob]) -> None:
        loop = asyncio.get_running_loop()
        inputs = [job.image.inputs for job in batch]
        try:
            outcomes = await loop.run_in_executor(device.threads, device.forward, inputs)
        finally:
            device.num_running -= 1
        for job, outcome in zip(batch, outcomes, strict=True):
            self._settle(job, outcome)
        self._hand_out()
