"""``ImageEncoder``: the images of all requests through one ``VisionModel``.

Whatever waits when the device becomes free forms the next batch, whichever request it came with;
there is no waiting window. An image that fails, fails alone. Knows nothing of prompts or engines.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Self

from PIL import Image

from vlcore.cache import RowCache, image_key
from vlcore.errors import EngineClosedError, ImageError, OptionError, VlcoreError
from vlcore.vision import ImageInputs, ImageRows, VisionModel, encode_batch

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class PreparedImage:
    """A preprocessed image, ready for the device."""

    inputs: Any
    key: str

    @property
    def num_rows(self) -> int | None:
        """How many rows it will give, where the plugin says so beforehand."""
        return self.inputs.num_rows if isinstance(self.inputs, ImageInputs) else None


@dataclass(frozen=True)
class EncoderStats:
    """Counts since the encoder was made."""

    num_images: int = 0
    """Images asked for."""
    num_cache_hits: int = 0
    """Images whose rows were kept, or were just being computed for another request."""
    num_forwards: int = 0
    """Calls of the vision model."""
    num_encoded: int = 0
    """Images that went through the vision model."""
    num_failures: int = 0
    """Images whose preprocessing or forward raised."""


class ImageEncoder:
    """Encodes images of concurrent requests in shared batches.

    Use it inside one event loop: ``async with ImageEncoder(model) as encoder``. Preprocessing
    runs in a pool of threads and the model in a thread of its own, never on the loop.

    Args:
        vision_model: what encodes.
        max_batch_size: how many images one forward takes at most.
        cache_bytes: how much memory the rows of earlier images may take.

    Raises:
        OptionError: a limit is out of range.
    """

    def __init__(
        self,
        vision_model: VisionModel,
        *,
        max_batch_size: int = 8,
        cache_bytes: int = 256 * 1024**2,
    ) -> None:
        for name, value, least in (
            ("max_batch_size", max_batch_size, 1),
            ("cache_bytes", cache_bytes, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise OptionError(f"{name} must be an integer of at least {least}; it is {value!r}")
        self.vision_model = vision_model
        self.max_batch_size = max_batch_size
        self._cache = RowCache(cache_bytes)
        self._waiting: deque[tuple[PreparedImage, asyncio.Future[ImageRows]]] = deque()
        self._in_flight: dict[str, asyncio.Future[ImageRows]] = {}
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, "vlcore-preprocess")
        self._device = ThreadPoolExecutor(1, "vlcore-vision")
        self._preparing: set[asyncio.Future[PreparedImage]] = set()
        self._worker: asyncio.Task[None] | None = None
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()  # preprocessing counts from many threads
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def prepare(
        self, images: Sequence[Image.Image], options: Sequence[Mapping[str, Any]] | None = None
    ) -> list[PreparedImage]:
        """Preprocess images in parallel.

        Args:
            images: PIL images of any mode.
            options: per image; names that the vision model does not take are errors.

        Raises:
            OptionError: an unknown image option.
            ImageError: the plugin cannot preprocess an image.
            EngineClosedError: the encoder was closed.
        """
        self._check_open()
        options = [_NO_OPTIONS] * len(images) if options is None else options
        loop = asyncio.get_running_loop()
        self._count("num_images", len(images))
        running = [
            loop.run_in_executor(self._pool, self._prepare, image, of_image)
            for image, of_image in zip(images, options, strict=True)
        ]
        for future in running:
            self._preparing.add(future)
            future.add_done_callback(self._preparing.discard)
        return list(await asyncio.gather(*running))

    async def encode(self, images: Sequence[Image.Image | PreparedImage]) -> list[ImageRows]:
        """Encode images, in order; ones that are prepared already are not prepared again.

        Shapes:
            rows of each: [k, hidden_size], on the model's device, in its dtype.

        Raises:
            ImageError: an image cannot be encoded.
            PluginContractError: the vision model returned something else than rows.
            EngineClosedError: the encoder was closed.
        """
        raw = [image for image in images if isinstance(image, Image.Image)]
        fresh = iter(await self.prepare(raw))
        prepared = [next(fresh) if isinstance(image, Image.Image) else image for image in images]
        self._check_open()
        return list(await asyncio.gather(*(self._encode_one(image) for image in prepared)))

    def stats(self) -> EncoderStats:
        """Take a snapshot of the counts."""
        with self._counting:
            return EncoderStats(**self._counts)

    async def close(self) -> None:
        """Fail what waits, let the batch on the device finish, and free the threads."""
        self._closed = True
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(EngineClosedError("the image encoder was closed"))
        if self._worker is not None:
            await self._worker
        if self._preparing:
            await asyncio.wait(self._preparing)
        self._pool.shutdown()
        self._device.shutdown()

    def _count(self, name: str, count: int = 1) -> None:
        with self._counting:
            self._counts[name] += count

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the image encoder was closed")

    def _prepare(self, image: Image.Image, options: Mapping[str, Any]) -> PreparedImage:
        self._check_open()
        model = self.vision_model
        if unknown := sorted(set(options) - model.image_options):
            raise OptionError(
                f"unknown image option(s) {', '.join(unknown)}: this model takes "
                f"{', '.join(sorted(model.image_options)) or 'none'}"
            )
        try:
            inputs = model.preprocess(image, **options)
            return PreparedImage(inputs, image_key(image, options, model))
        except VlcoreError:
            self._count("num_failures")
            raise
        except Exception as error:
            self._count("num_failures")
            raise ImageError(
                f"{type(model).__name__}.preprocess failed on an image ({image.mode}, "
                f"{image.width} x {image.height}): {type(error).__name__}: {error}"
            ) from error

    async def _encode_one(self, image: PreparedImage) -> ImageRows:
        rows = self._cache.get(image.key)
        if rows is not None:
            self._count("num_cache_hits")
            return rows
        future = self._in_flight.get(image.key)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._in_flight[image.key] = future
            future.add_done_callback(lambda done: self._settle(image.key, done))
            self._waiting.append((image, future))
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._work())
        else:
            self._count("num_cache_hits")
        # Shielded: one request's cancellation must not take the rows from another.
        return await asyncio.shield(future)

    def _settle(self, key: str, future: asyncio.Future[ImageRows]) -> None:
        del self._in_flight[key]
        if not future.cancelled() and future.exception() is None:
            self._cache.put(key, future.result())

    async def _work(self) -> None:
        while self._waiting:
            size = min(len(self._waiting), self.max_batch_size)
            await self._run([self._waiting.popleft() for _ in range(size)])

    async def _run(self, batch: list[tuple[PreparedImage, asyncio.Future[ImageRows]]]) -> None:
        loop = asyncio.get_running_loop()
        self._count("num_forwards")
        inputs = [image.inputs for image, _ in batch]
        try:
            rows = await loop.run_in_executor(self._device, encode_batch, self.vision_model, inputs)
        except Exception as error:
            if len(batch) > 1:
                for single in batch:
                    await self._run([single])
                return
            self._count("num_failures")
            batch[0][1].set_exception(self._as_vlcore_error(error))
            return
        self._count("num_encoded", len(batch))
        for (_, future), image_rows in zip(batch, rows, strict=True):
            future.set_result(image_rows)

    def _as_vlcore_error(self, error: Exception) -> VlcoreError:
        if isinstance(error, VlcoreError):
            return error
        wrapped = ImageError(
            f"{type(self.vision_model).__name__} failed on an image: "
            f"{type(error).__name__}: {error}"
        )
        wrapped.__cause__ = error
        return wrapped
