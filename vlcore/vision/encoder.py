"""``ImageEncoder``: the images of all requests through one ``VisionModel``.

Whatever waits when the device becomes free forms the next batch, whichever request it came with;
there is no waiting window. An image that fails, fails alone. Knows nothing of prompts or engines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

import torch
from PIL import Image

from vlcore._utils.device import as_device
from vlcore._utils.progress import progress_bar
from vlcore.errors import EngineClosedError, ImageLimitError, OptionError, VlcoreError
from vlcore.media.policy import DEFAULT_LIMITS, TRUSTING, DecodedBudget, ImageAccess, ImageLimits
from vlcore.media.source import ImageSource
from vlcore.vision.batch_executor import Outcome, explain
from vlcore.vision.device_runner import make_device_runner
from vlcore.vision.embedding_cache import EmbeddingCache
from vlcore.vision.model import ImageRows, VisionModel
from vlcore.vision.preprocessing import (
    NO_OPTIONS,
    ImagePreprocessor,
    ImageRequest,
    PreparedImage,
    image_label,
)
from vlcore.vision.scheduler import ImageJob, ImageQueue, Scheduler
from vlcore.vision.stats import EncoderStats, Meter

_T = TypeVar("_T")


class EncoderOptions(TypedDict, total=False):
    """The settings of :class:`ImageEncoder`, for those who pass them on."""

    max_batch_size: int
    max_batch_tiles: int | None
    cache_bytes: int
    max_pending: int | None
    image_limits: ImageLimits
    image_access: ImageAccess
    rows_device: torch.device | str | None
    cuda_graphs: bool
    torch_compile: bool | Mapping[str, Any]
    shrink_on_load: bool


class ImageEncoder:
    """Encodes images of concurrent requests in shared batches.

    Use it inside one event loop: ``async with ImageEncoder(model) as encoder``. Pictures are
    fetched, decoded and preprocessed in pools of threads, and the model runs in threads of its
    own, never on the loop.

    Args:
        vision_model: what encodes; or several replicas of it, each on a device of its own, which
            share one queue.
        max_batch_size: how many images one forward takes at most.
        max_batch_tiles: how many tiles one forward takes at most, if it takes more than one image;
            ``None`` for four to an image. An image of a plugin without tiles counts as one.
        cache_bytes: how much memory the rows of earlier images may take.
        max_pending: how many images of all requests together are on their way at a time, from
            fetching to rows; the others wait before anything is read or decoded. ``None`` for four
            batches.
        image_limits: what a picture may cost, and those of a request.
        image_access: where pictures may come from; anywhere, unless told otherwise.
        rows_device: where rows go and are kept; ``None`` leaves them on the device that gave them.
        cuda_graphs: on CUDA, record the tower as a CUDA graph at the first batch of a few sizes.
        torch_compile: compile the tower at its first batch, with options of ``torch.compile`` or
            with its defaults. Only a plugin's ``tower`` is compiled or recorded.
        shrink_on_load: let a JPEG's decoder, which is fast at it, shrink a picture that is much
            larger than the model needs; its rows then differ a little.

    Raises:
        OptionError: a limit is out of range, or the replicas are not of one model.
    """

    def __init__(
        self,
        vision_model: VisionModel | Sequence[VisionModel],
        *,
        max_batch_size: int = 8,
        max_batch_tiles: int | None = None,
        cache_bytes: int = 256 * 1024**2,
        max_pending: int | None = None,
        image_limits: ImageLimits = DEFAULT_LIMITS,
        image_access: ImageAccess = TRUSTING,
        rows_device: torch.device | str | None = None,
        cuda_graphs: bool = True,
        torch_compile: bool | Mapping[str, Any] = False,
        shrink_on_load: bool = False,
    ) -> None:
        _check_limit("max_batch_size", max_batch_size, 1)
        _check_limit("cache_bytes", cache_bytes, 0)
        max_batch_tiles = 4 * max_batch_size if max_batch_tiles is None else max_batch_tiles
        _check_limit("max_batch_tiles", max_batch_tiles, 1)
        max_pending = 4 * max_batch_size if max_pending is None else max_pending
        _check_limit("max_pending", max_pending, 1)
        models = [vision_model] if isinstance(vision_model, VisionModel) else list(vision_model)
        _check_replicas(models)
        self.vision_model = models[0]
        self.max_batch_size = max_batch_size
        self.shrink_on_load = shrink_on_load
        self._limits = image_limits
        self._meter = Meter()
        self._cache = EmbeddingCache(cache_bytes)
        self._preparation = ImagePreprocessor(
            self.vision_model,
            self._cache,
            limits=image_limits,
            access=image_access,
            max_pending=max_pending,
            meter=self._meter,
            shrink_on_load=shrink_on_load,
        )
        self._queue = ImageQueue(max_batch_size, self._meter)
        replicas = [
            make_device_runner(
                model,
                rows_device=None if rows_device is None else as_device(rows_device),
                cuda_graphs=cuda_graphs,
                torch_compile=torch_compile,
            )
            for model in models
        ]
        self._devices = Scheduler(
            replicas, self._queue, self._settle, max_tiles=max_batch_tiles, meter=self._meter
        )

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
            ImageLimitError: the images are too many or too large.
            PluginContractError: the vision model returned something else than rows.
            EngineClosedError: the encoder was closed.
        """
        requests = self._requests(images, options, self._budget(images))
        return await _together([self._encode(request) for request in requests])

    async def encode_many(
        self,
        images: Sequence[ImageSource],
        options: Sequence[Mapping[str, Any]] | None = None,
        *,
        progress: bool = False,
    ) -> list[ImageRows | VlcoreError]:
        """Encode like :meth:`encode`; an image that fails has its error in the place of rows."""
        requests = self._requests(images, options)
        with progress_bar(
            len(requests), description="encoding", unit="image", shown=progress
        ) as advance:

            async def encode(request: ImageRequest) -> ImageRows | VlcoreError:
                try:
                    return await self._encode(request)
                except VlcoreError as error:
                    return error
                finally:
                    advance()

            return await _together([encode(request) for request in requests])

    async def prepare(
        self,
        images: Sequence[ImageSource],
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[PreparedImage]:
        """Take the first step of :meth:`encode`: fetch, decode and preprocess, in parallel."""
        requests = self._requests(images, options, self._budget(images))
        return await _together([self._preparation.prepare(request) for request in requests])

    async def encode_prepared(self, images: Sequence[PreparedImage]) -> list[ImageRows]:
        """Take the second step of :meth:`encode`: put prepared images through the model."""
        self._preparation.check_open()
        owner = object()
        return await _together([self._rows(image, owner) for image in images])

    async def load(self, sources: Sequence[ImageSource]) -> list[Image.Image]:
        """Fetch and decode the pictures of one request, to keep them."""
        return await self._preparation.load(sources, self._budget(sources))

    def stats(self) -> EncoderStats:
        """Take a snapshot of the counts."""
        return self._meter.stats(
            num_waiting=len(self._queue),
            max_batch_tiles=self._devices.max_tiles,
            cached_images=len(self._cache),
            cached_bytes=self._cache.num_bytes,
        )

    async def close(self, timeout_s: float = 60.0) -> None:
        """Fail what waits, let the batches on the devices finish, and free the threads.

        What has not finished in ``timeout_s`` seconds is failed too, and its thread left behind.
        """
        self._preparation.refuse()
        closed = EngineClosedError("the image encoder was closed")
        self._queue.refuse_waiting(closed)
        await self._devices.close(timeout_s)
        self._queue.refuse_all(closed)
        await self._preparation.close(timeout_s)

    def _requests(
        self,
        images: Sequence[ImageSource],
        options: Sequence[Mapping[str, Any]] | None,
        budget: DecodedBudget | None = None,
    ) -> list[ImageRequest]:
        """Combine the images of one request with their options and labels."""
        self._preparation.check_open()
        options = [NO_OPTIONS] * len(images) if options is None else options
        pairs = list(zip(images, options, strict=True))
        self._meter.count("num_images", len(pairs))
        owner = object()
        return [
            ImageRequest(
                source, image_options, image_label(source, number, len(pairs)), owner, budget
            )
            for number, (source, image_options) in enumerate(pairs, 1)
        ]

    def _budget(self, images: Sequence[ImageSource]) -> DecodedBudget:
        if len(images) > self._limits.max_images:
            raise ImageLimitError(
                f"the request has {len(images)} images, more than "
                f"max_images={self._limits.max_images} of vlcore.ImageLimits"
            )
        return DecodedBudget(self._limits)

    async def _encode(self, request: ImageRequest) -> ImageRows:
        async with self._preparation.admitted(request) as admitted:
            image = await self._preparation.prepare_admitted(admitted)
            return await self._rows(image, request.owner)

    async def _rows(self, image: PreparedImage, owner: Hashable) -> ImageRows:
        self._preparation.check_open()
        rows = image.rows or self._cache.get(image.key)
        if rows is not None:
            self._meter.count("num_cache_hits")
            return rows
        job = self._queue.ask(image, owner)
        self._devices.serve()
        outcome = await self._queue.wait(job)
        if isinstance(outcome, Exception):
            raise explain(outcome, self.vision_model, image.label)
        if image.file:
            self._cache.link(image.file, image.key)
        return outcome

    def _settle(self, job: ImageJob, outcome: Outcome) -> None:
        if isinstance(outcome, ImageRows):
            self._meter.count("num_encoded")
            self._cache.put(job.image.key, outcome)
        else:
            self._meter.count("num_failures")
        self._queue.settle(job, outcome)


def _check_replicas(models: Sequence[VisionModel]) -> None:
    if not models:
        raise OptionError("an image encoder needs a vision model; the list of replicas is empty")
    facts = {
        (type(model).__name__, model.hidden_size, model.dtype, model.fingerprint)
        for model in models
    }
    if len(facts) > 1:
        raise OptionError(
            "replicas must be copies of one model (class, hidden_size, dtype, fingerprint); these "
            f"differ: {sorted(map(str, facts))}"
        )


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
