"""The replicas of a vision model, which take their batches from one queue.

Lives on one event loop; each replica computes in threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from vlcore._threads import DaemonExecutor
from vlcore.encoder_stats import Meter
from vlcore.forward import BatchForward, Outcome
from vlcore.image_queue import ImageQueue, Job
from vlcore.replica import Replica

logger = logging.getLogger(__name__)


class _Device:
    """A replica, the threads in which its batches run, and how many do."""

    def __init__(self, replica: Replica, max_tiles: int, meter: Meter, name: str) -> None:
        self.forward = BatchForward(replica, max_tiles, meter)
        self.threads = DaemonExecutor(replica.num_lanes, name)
        self.num_lanes = replica.num_lanes
        self.num_running = 0


class Devices:
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
        replicas: Sequence[Replica],
        queue: ImageQueue,
        settle: Callable[[Job, Outcome], None],
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

    def _next_batch(self, device: _Device) -> list[Job]:
        max_tiles = device.forward.max_tiles
        if device.num_running == 0:
            num_idle = sum(other.num_running == 0 for other in self._devices)
            return self._queue.next_batch(max_tiles, shared_by=num_idle)
        if device.num_running < device.num_lanes and self._queue.fills(max_tiles):
            return self._queue.next_batch(max_tiles)
        return []

    async def _encode(self, device: _Device, batch: Sequence[Job]) -> None:
        loop = asyncio.get_running_loop()
        inputs = [job.image.inputs for job in batch]
        try:
            outcomes = await loop.run_in_executor(device.threads, device.forward, inputs)
        finally:
            device.num_running -= 1
        for job, outcome in zip(batch, outcomes, strict=True):
            self._settle(job, outcome)
        self._hand_out()
