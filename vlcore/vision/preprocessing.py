"""From where a picture lies to what a ``VisionModel`` takes: fetched, decoded, preprocessed.

A download waits on the loop, outside of the places of what is worked on, so that a slow server
holds up only its own pictures; cancelling closes its connection. Files have threads. A picture is
decoded and preprocessed in one go in a pool sized to the cores, so no decoded one waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Coroutine, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

from PIL import Image
from torch import Tensor

from vlcore._utils.executor import DaemonExecutor
from vlcore._utils.fair_queue import FairSemaphore
from vlcore.errors import (
    EngineClosedError,
    ImageError,
    OptionError,
    PluginContractError,
    VlcoreError,
)
from vlcore.media.download import download
from vlcore.media.image import decode_image, load_image
from vlcore.media.policy import TRUSTING, DecodedBudget, ImageAccess, ImageLimits
from vlcore.media.source import ImageSource, describe, is_web_url, read_image
from vlcore.vision.embedding_cache import EmbeddingCache, file_key, image_key
from vlcore.vision.model import ImageInputs, ImageRows, VisionModel
from vlcore.vision.stats import Meter

logger = logging.getLogger(__name__)

_MAX_FETCHES = 32
"""Files read at a time; a read that hangs keeps neither the others nor the interpreter."""

_MAX_DOWNLOADS = 128
"""Downloads at a time, with those that have come and wait for their turn to be decoded."""

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class PreparedImage:
    """A preprocessed image, ready for the device; or one whose rows are known already."""

    place: str
    """Where it stands in its request, and what it is, for messages."""
    key: str
    inputs: Any = None
    num_tiles: int = 1
    """What it costs in a batch."""
    rows: ImageRows | None = None
    file: str = ""
    """The key of its file, if it comes from one."""

    @property
    def num_rows(self) -> int | None:
        """How many rows it will give, where the plugin says so beforehand."""
        if self.rows is not None:
            return len(self.rows.rows)
        return self.inputs.num_rows if isinstance(self.inputs, ImageInputs) else None

    @property
    def layout(self) -> Any:
        """The layout of its rows, where ``num_rows`` is known."""
        known = self.inputs if self.rows is None else self.rows
        return known.layout if isinstance(known, ImageInputs | ImageRows) else None


class ImagePreprocessor:
    """Prepares images of concurrent requests, which take turns.

    Args:
        model: preprocesses.
        cache: knows the rows of earlier images, which are not prepared again.
        limits: what a picture may cost.
        access: where pictures may come from.
        max_pending: how many pictures are on their way here at a time.
        meter: counts failures and times.
        shrink_on_load: let a JPEG's decoder shrink it towards what the model needs.
    """

    def __init__(
        self,
        model: VisionModel,
        cache: EmbeddingCache,
        *,
        limits: ImageLimits,
        max_pending: int,
        meter: Meter,
        access: ImageAccess = TRUSTING,
        shrink_on_load: bool = False,
    ) -> None:
        self._model = model
        self._shrink_on_load = shrink_on_load
        self._cache = cache
        self._limits = limits
        self._access = access
        self._gate = FairSemaphore(max_pending)
        self._downloads = FairSemaphore(_MAX_DOWNLOADS)
        self._meter = meter
        self._fetchers = DaemonExecutor(_MAX_FETCHES, "vlcore-fetch")
        self._pool = DaemonExecutor(_num_cores(), "vlcore-preprocess")
        self._prepared: WeakValueDictionary[str, PreparedImage] = WeakValueDictionary()
        """What some request still needs: an equal picture takes its inputs."""
        self._closed = False

    async def prepare(
        self,
        source: ImageSource,
        options: Mapping[str, Any],
        place: str,
        owner: Hashable,
        budget: DecodedBudget | None = None,
    ) -> PreparedImage:
        """Prepare one image.

        Args:
            source: where the picture lies.
            options: of the plugin's ``preprocess``.
            place: where it stands in its request, for messages.
            owner: the request.
            budget: what its pictures may still take.

        Raises:
            OptionError: an unknown image option.
            ImageError: it is no readable picture, or the plugin cannot preprocess it.
            EngineClosedError: the encoder was closed.
        """
        async with self.fetched(source, place, owner) as (found, of_found):
            return await self.prepare_fetched(found, options, of_found, owner, budget)

    @asynccontextmanager
    async def fetched(
        self, source: ImageSource, place: str, owner: Hashable
    ) -> AsyncIterator[tuple[ImageSource, str]]:
        """Download what a URL names, while it holds up none that is here already.

        Yields the source, as bytes where it was a URL, and where it stands for messages.
        """
        if not isinstance(source, Image.Image | bytes):
            place = f"{place}, {describe(source)}"
        if not is_web_url(source):
            yield source, place
            return
        async with self._downloads.place(owner):
            yield await self._download(str(source)), place

    async def load(
        self, sources: Sequence[ImageSource], budget: DecodedBudget
    ) -> list[Image.Image]:
        """Fetch and decode the pictures of a request for another use than encoding them."""
        self.check_open()
        loop = asyncio.get_running_loop()

        async def load(source: ImageSource) -> Image.Image:
            if is_web_url(source):
                source = await self._download(str(source))
            return await loop.run_in_executor(self._fetchers, self._load, source, budget)

        return await _all(map(load, sources))

    async def prepare_fetched(
        self,
        source: ImageSource,
        options: Mapping[str, Any],
        place: str,
        owner: Hashable,
        budget: DecodedBudget | None,
    ) -> PreparedImage:
        """Go on like :meth:`prepare` with what :meth:`fetched` yields."""
        async with self._gate.place(owner):
            self.check_open()
            loop = asyncio.get_running_loop()
            if not isinstance(source, Image.Image | bytes):
                source = await loop.run_in_executor(self._fetchers, self._fetch, source)
                self.check_open()
            return await loop.run_in_executor(
                self._pool, self._work, source, options, place, budget
            )

    async def _download(self, url: str) -> bytes:
        self.check_open()
        try:
            return await download(url, describe(url), self._limits, self._access)
        except Exception:
            self._meter.count("num_failures")
            raise

    def refuse(self) -> None:
        """Refuse what waits and what comes."""
        self._closed = True

    async def close(self, timeout_s: float = 60.0) -> None:
        """Refuse what waits, let what runs finish, and free the threads; leave one that hangs."""
        self.refuse()
        await self._fetchers.stop(min(1.0, timeout_s))  # nobody waits for these files any more
        if not await self._pool.stop(timeout_s):
            logger.error(
                "%s.preprocess did not finish in %g s: its thread is left behind",
                type(self._model).__name__,
                timeout_s,
            )

    def check_open(self) -> None:
        """Raise where the encoder was closed."""
        if self._closed:
            raise EngineClosedError("the image encoder was closed")

    def _load(self, source: ImageSource, budget: DecodedBudget) -> Image.Image:
        self.check_open()
        return load_image(source, self._limits, self._access, budget)

    def _fetch(self, source: str | Path) -> bytes:
        self.check_open()
        try:
            return read_image(source, self._limits, self._access)
        except Exception:
            self._meter.count("num_failures")
            raise

    def _work(
        self,
        source: bytes | Image.Image,
        options: Mapping[str, Any],
        place: str,
        budget: DecodedBudget | None,
    ) -> PreparedImage:
        self.check_open()
        started = time.perf_counter()
        try:
            return self._prepare(source, options, place, budget)
        except Exception:
            self._meter.count("num_failures")
            raise
        finally:
            self._meter.time("preprocess_s", time.perf_counter() - started)

    def _prepare(
        self,
        source: bytes | Image.Image,
        options: Mapping[str, Any],
        place: str,
        budget: DecodedBudget | None,
    ) -> PreparedImage:
        model = self._model
        if unknown := sorted(set(options) - model.image_options):
            raise OptionError(
                f"unknown image option(s) {', '.join(unknown)}: this model takes "
                f"{', '.join(sorted(model.image_options)) or 'none'}"
            )
        file = ""
        if isinstance(source, bytes):
            file = file_key(source, options, model, shrink_on_load=self._shrink_on_load)
            if (rows := self._cache.get(file)) is not None:
                return PreparedImage(place, file, rows=rows)
            needed_size = self._needed_size if self._shrink_on_load else None
            image = decode_image(source, place, self._limits, needed_size, budget)
            place = f"{place} ({image.width} x {image.height})"
        else:
            place = f"{place} ({source.mode}, {source.width} x {source.height})"
            image = load_image(source, self._limits)
        key = image_key(image, options, model)
        if (rows := self._cache.get(key)) is not None:
            if file:
                self._cache.link(file, key)
            return PreparedImage(place, key, rows=rows)
        if (known := self._prepared.get(key)) is not None:
            return replace(known, place=place, file=file)
        try:
            inputs = model.preprocess(image, **options)
        except VlcoreError:
            raise
        except Exception as error:
            raise ImageError(
                f"{place}: {type(model).__name__}.preprocess failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        prepared = PreparedImage(place, key, inputs, self._count_tiles(inputs), file=file)
        self._prepared[key] = prepared
        return prepared

    def _needed_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        try:
            return self._model.needed_size(size)
        except Exception as error:
            raise ImageError(
                f"{type(self._model).__name__}.needed_size failed for a picture of "
                f"{size[0]} x {size[1]}: {type(error).__name__}: {error}"
            ) from error

    def _count_tiles(self, inputs: Any) -> int:
        if not isinstance(inputs, ImageInputs):
            return 1
        pixels: object = inputs.pixels
        came = type(pixels).__name__
        if isinstance(pixels, Tensor):
            if pixels.ndim > 0 and pixels.device.type == "cpu":
                return len(pixels)
            came = f"{list(pixels.shape)} on {pixels.device}"
        raise PluginContractError(
            f"{type(self._model).__name__}.preprocess must give pixels [tiles, 3, H, W] on the "
            f"CPU; they came as {came}"
        )


async def _all(coroutines: Iterable[Coroutine[Any, Any, Image.Image]]) -> list[Image.Image]:
    """Await all; where one fails or the caller is cancelled, none is left behind."""
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
