"""``ImageEncoder``: the images of all requests through one ``VisionModel``.

Whatever waits when the device becomes free forms the next batch, whichever request it came with;
there is no waiting window. An image that fails, fails alone. Knows nothing of prompts or engines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from PIL import Image

from vlcore._progress import progress_bar
from vlcore.cache import RowCache
from vlcore.encoder_stats import EncoderStats, Meter
from vlcore.errors import EngineClosedError, OptionError, VlcoreError
from vlcore.forward import BatchForward, Outcome, explain
from vlcore.media import DEFAULT_LIMITS, ImageLimits, ImageSource
from vlcore.preparation import NO_OPTIONS, ImagePreparation, PreparedImage
from vlcore.turns import Gate, Turns
from vlcore.vision import ImageRows, VisionModel

_T = TypeVar("_T")


@dataclass(eq=False)
class _Job:
    """An image that somebody waits for."""

    image: PreparedImage
    outcome: asyncio.Future[Outcome]
    asked: float = field(default_factory=time.perf_counter)
    owners: set[Hashable] = field(default_factory=set)
    """Requests in whose turn it may come."""
    num_waiters: int = 0
    started: bool = False
    """Left the queue, for the device or because the encoder was closed."""


class ImageEncoder:
    """Encodes images of concurrent requests in shared batches.

    Use it inside one event loop: ``async with ImageEncoder(model) as encoder``. Pictures are
    fetched, decoded and preprocessed in pools of threads, and the model runs in a thread of its
    own, never on the loop.

    Args:
        vision_model: what encodes.
        max_batch_size: how many images one forward takes at most.
        max_batch_tiles: how many tiles one forward takes at most, if it takes more than one image;
            ``None`` for four to an image. An image of a plugin without tiles counts as one.
        cache_bytes: how much memory the rows of earlier images may take.
        max_pending: how many images of all requests together are on their way at a time, from
            fetching to rows; the others wait before anything is read or decoded. ``None`` for four
            batches.
        image_limits: what a picture may cost.

    Raises:
        OptionError: a limit is out of range.
    """

    def __init__(
        self,
        vision_model: VisionModel,
        *,
        max_batch_size: int = 8,
        max_batch_tiles: int | None = None,
        cache_bytes: int = 256 * 1024**2,
        max_pending: int | None = None,
        image_limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        _check_limit("max_batch_size", max_batch_size, 1)
        _check_limit("cache_bytes", cache_bytes, 0)
        max_batch_tiles = 4 * max_batch_size if max_batch_tiles is None else max_batch_tiles
        _check_limit("max_batch_tiles", max_batch_tiles, 1)
        max_pending = 4 * max_batch_size if max_pending is None else max_pending
        _check_limit("max_pending", max_pending, 1)
        self.vision_model = vision_model
        self.max_batch_size = max_batch_size
        self._meter = Meter()
        self._cache = RowCache(cache_bytes)
        self._preparation = ImagePreparation(
            vision_model,
            self._cache,
            limits=image_limits,
            max_pending=max_pending,
            meter=self._meter,
        )
        self._forward = BatchForward(vision_model, max_batch_tiles, self._meter)
        self._gate = Gate(max_pending)
        self._jobs: dict[str, _Job] = {}
        self._waiting: Turns[_Job] = Turns()
        self._device = ThreadPoolExecutor(1, "vlcore-vision")
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def encode(
        self,
        images: Sequence[ImageSource],
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[ImageRows]:
        """Encode the images of one request, in order.

        Args:
            images: paths, URLs, bytes of files or PIL images.
            options: per image; names that the vision model does not take are errors.

        Shapes:
            rows of each: [k, hidden_size], on the model's device, in its dtype.

        Raises:
            OptionError: an unknown image option.
            ImageError: an image cannot be read or encoded.
            PluginContractError: the vision model returned something else than rows.
            EngineClosedError: the encoder was closed.
        """
        owner = object()
        work = self._request(images, options)
        return await _together([self._encode(*image, owner) for image in work])

    async def encode_many(
        self,
        images: Sequence[ImageSource],
        options: Sequence[Mapping[str, Any]] | None = None,
        *,
        progress: bool = False,
    ) -> list[ImageRows | VlcoreError]:
        """Encode like :meth:`encode`; an image that fails has its error in the place of rows."""
        owner = object()
        work = self._request(images, options)
        with progress_bar(
            len(work), description="encoding", unit="image", shown=progress
        ) as advance:

            async def encode(
                source: ImageSource, options: Mapping[str, Any], place: str
            ) -> ImageRows | VlcoreError:
                try:
                    return await self._encode(source, options, place, owner)
                except VlcoreError as error:
                    return error
                finally:
                    advance()

            return await _together([encode(*image) for image in work])

    async def prepare(
        self,
        images: Sequence[ImageSource],
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[PreparedImage]:
        """Take the first step of :meth:`encode`: fetch, decode and preprocess, in parallel."""
        owner = object()
        work = self._request(images, options)
        return await _together([self._preparation.prepare(*image, owner) for image in work])

    async def encode_prepared(self, images: Sequence[PreparedImage]) -> list[ImageRows]:
        """Take the second step of :meth:`encode`: put prepared images through the model."""
        self._preparation.check_open()
        owner = object()
        return await _together([self._rows(image, owner) for image in images])

    async def load(self, sources: Sequence[ImageSource]) -> list[Image.Image]:
        """Fetch and decode pictures, to keep them."""
        return await self._preparation.load(sources)

    def stats(self) -> EncoderStats:
        """Take a snapshot of the counts."""
        return self._meter.stats(
            num_waiting=len(self._waiting),
            max_batch_tiles=self._forward.max_tiles,
            cached_images=len(self._cache),
            cached_bytes=self._cache.num_bytes,
        )

    async def close(self) -> None:
        """Fail what waits, let the batch on the device finish, and free the threads."""
        self._preparation.refuse()
        closed = EngineClosedError("the image encoder was closed")
        while self._waiting:
            self._settle(self._next_job(), closed)
        if self._worker is not None:
            await asyncio.wait([self._worker])
        for job in list(self._jobs.values()):  # of a worker that was cancelled
            self._settle(job, closed)
        await self._preparation.close()
        self._device.shutdown()

    def _request(
        self, images: Sequence[ImageSource], options: Sequence[Mapping[str, Any]] | None
    ) -> list[tuple[ImageSource, Mapping[str, Any], str]]:
        """Number the images of a request."""
        self._preparation.check_open()
        options = [NO_OPTIONS] * len(images) if options is None else options
        pairs = list(zip(images, options, strict=True))
        self._meter.count("num_images", len(pairs))
        return [
            (image, of_image, f"image {number} of {len(pairs)}")
            for number, (image, of_image) in enumerate(pairs, 1)
        ]

    async def _encode(
        self, source: ImageSource, options: Mapping[str, Any], place: str, owner: Hashable
    ) -> ImageRows:
        async with self._gate.place(owner):
            image = await self._preparation.prepare(source, options, place, owner)
            return await self._rows(image, owner)

    async def _rows(self, image: PreparedImage, owner: Hashable) -> ImageRows:
        self._preparation.check_open()
        rows = image.rows or self._cache.get(image.key)
        if rows is not None:
            self._meter.count("num_cache_hits")
            return rows
        job = self._jobs.get(image.key)
        if job is None:
            job = _Job(image, asyncio.get_running_loop().create_future())
            self._jobs[image.key] = job
        else:
            self._meter.count("num_cache_hits")
        if not job.started and owner not in job.owners:
            job.owners.add(owner)
            self._waiting.add(owner, job)
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._work())
        outcome = await self._wait(job)
        if isinstance(outcome, Exception):
            raise explain(outcome, self.vision_model, image.place)
        if image.file:
            self._cache.link(image.file, image.key)
        return outcome

    async def _wait(self, job: _Job) -> Outcome:
        job.num_waiters += 1
        try:
            # Shielded: one request's cancellation must not take the rows from another.
            return await asyncio.shield(job.outcome)
        finally:
            job.num_waiters -= 1
            if not job.num_waiters and not job.started:
                self._leave_queue(job)
                del self._jobs[job.image.key]
                self._meter.count("num_cancelled")

    def _leave_queue(self, job: _Job) -> None:
        for owner in job.owners:
            self._waiting.discard(owner, job)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._next_batch()
            inputs = [job.image.inputs for job in batch]
            outcomes = await loop.run_in_executor(self._device, self._forward, inputs)
            for job, outcome in zip(batch, outcomes, strict=True):
                self._settle(job, outcome)

    def _next_batch(self) -> list[_Job]:
        """Take what fits into a forward, request by request."""
        batch: list[_Job] = []
        num_tiles = 0
        while self._waiting and len(batch) < self.max_batch_size:
            job = self._waiting.peek()
            num_tiles += job.image.num_tiles
            if batch and num_tiles > self._forward.max_tiles:
                break
            batch.append(self._next_job())
            self._meter.time("queue_wait_s", time.perf_counter() - job.asked)
        return batch

    def _next_job(self) -> _Job:
        job = self._waiting.pop()
        job.started = True
        self._leave_queue(job)
        return job

    def _settle(self, job: _Job, outcome: Outcome) -> None:
        del self._jobs[job.image.key]
        if isinstance(outcome, ImageRows):
            self._meter.count("num_encoded")
            self._cache.put(job.image.key, outcome)
        elif not isinstance(outcome, EngineClosedError):
            self._meter.count("num_failures")
        job.outcome.set_result(outcome)


def _check_limit(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name} must be an integer of at least {least}; it is {value!r}")


async def _together(coroutines: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Await all; where one fails, the others are cancelled and gone before its error is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
