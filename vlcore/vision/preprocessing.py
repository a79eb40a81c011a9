"""``ImagePreprocessor``: reads, decodes and preprocesses images and videos for a ``VisionModel``.

Downloads do not count as images in progress, so that a slow server delays only its own images. An
image or video is decoded and preprocessed by one thread without a break, in a pool with as many
threads as there are CPUs, so that nothing that is decoded waits in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from PIL import Image
from torch import Tensor

from vlcore._utils.executor import DaemonExecutor
from vlcore._utils.fair_queue import FairSemaphore
from vlcore._utils.gather import gather_or_cancel
from vlcore._utils.resources import num_cpus
from vlcore.errors import (
    EngineClosedError,
    ImageError,
    OptionError,
    PluginContractError,
    VideoError,
    VlcoreError,
)
from vlcore.media.conversion import parse_background
from vlcore.media.fetcher import ImageFetcher
from vlcore.media.image import decode_image, load_image
from vlcore.media.policy import TRUSTING, DecodedBudget, ImageAccess, ImageLimits
from vlcore.media.source import ImageSource, describe, is_data_url, read_image
from vlcore.media.undecoded_video import SAMPLING_OPTIONS, UndecodedVideo, VideoInput
from vlcore.media.video import Video, VideoLimits, VideoSampling
from vlcore.media.video_decoder import decode_video
from vlcore.media.video_loader import DEFAULT_VIDEO_LIMITS, video_from_frames
from vlcore.vision.embedding_cache import (
    EmbeddingCache,
    file_key,
    image_key,
    video_file_key,
    video_key,
)
from vlcore.vision.image_request import ImageRequest
from vlcore.vision.model import ImageInputs, VisionModel, count_tiles
from vlcore.vision.prepared_image import PreparedImage
from vlcore.vision.stats import Meter

logger = logging.getLogger(__name__)


class ImagePreprocessor:
    """Preprocesses the images of concurrent requests in turn.

    Args:
        model: the vision model.
        cache: embeddings of earlier images, which are not preprocessed again.
        limits: limits for each image.
        video_limits: limits for each video.
        access: sources that images and videos may be read from.
        max_pending: maximum number of admitted images.
        meter: counts failures and times.
        shrink_on_load: let the JPEG decoder reduce images towards the size that the model needs.
        background: colour behind transparent pixels; ``None`` drops the transparency.
    """

    def __init__(
        self,
        model: VisionModel,
        cache: EmbeddingCache,
        *,
        limits: ImageLimits,
        video_limits: VideoLimits = DEFAULT_VIDEO_LIMITS,
        max_pending: int,
        meter: Meter,
        access: ImageAccess = TRUSTING,
        shrink_on_load: bool = False,
        background: str | None = None,
    ) -> None:
        self._model = model
        self._shrink_on_load = shrink_on_load
        self._background = background
        parse_background(background)
        self._cache = cache
        self._limits = limits
        self._video_limits = video_limits
        self._access = access
        self._pending = FairSemaphore(max_pending)
        self._meter = meter
        self._fetcher = ImageFetcher(limits, access, video_limits)
        num_threads = num_cpus()
        self._pool = DaemonExecutor(num_threads, "vlcore-preprocess")
        self._threads = FairSemaphore(num_threads)
        """The threads of the pool, for which requests wait in turn."""
        self._prepared: WeakValueDictionary[str, PreparedImage] = WeakValueDictionary()
        """Preprocessed images that are in use, by key; equal images share their inputs."""
        self._closed = False

    async def prepare(self, image: ImageRequest) -> PreparedImage:
        """Prepare one image.

        Raises:
            OptionError: An image option is unknown.
            ImageError: The source is not a readable image, or the plugin cannot preprocess it.
            EngineClosedError: The encoder was closed.
        """
        async with self.admitted(image) as admitted:
            return await self.prepare_admitted(admitted)

    @asynccontextmanager
    async def admitted(self, image: ImageRequest) -> AsyncIterator[ImageRequest]:
        """Download an image if its source is a URL, and wait until it may be processed.

        The number of images within this context is limited. A download does not count until it is
        complete, so that slow servers do not hold up images that are already here.

        Yields:
            The image, with the downloaded bytes as its source.
        """
        async with AsyncExitStack() as stack:
            source = await self._enter_download(stack, image.source, image.owner)
            image = replace(image, source=source)
            await stack.enter_async_context(self._pending.hold(image.owner))
            self.check_open()
            yield image

    async def load(
        self, sources: Sequence[ImageSource | VideoInput], budget: DecodedBudget
    ) -> list[Image.Image | Video]:
        """Read and decode the images and videos of a request, without preprocessing them."""
        self.check_open()
        owner = object()
        video_budget = DecodedBudget(self._video_limits)

        async def load(source: ImageSource | VideoInput) -> Image.Image | Video:
            async with AsyncExitStack() as stack:
                source = await self._enter_download(stack, source, owner)
                if isinstance(source, Video):
                    return source
                if isinstance(source, UndecodedVideo):
                    source = await self._fetcher.read_video(source)
                    return await self._fetcher.run(partial(self._load_video, source, video_budget))
                return await self._fetcher.run(partial(self._load, source, budget))

        return await gather_or_cancel(map(load, sources))

    async def prepare_admitted(self, image: ImageRequest) -> PreparedImage:
        """Prepare an image like :meth:`prepare`, within the context of :meth:`admitted`."""
        source = image.source
        if not (isinstance(source, Image.Image | bytes | Video) or is_data_url(source)):
            self.check_open()
            with self._counting_failures():
                image = replace(image, source=await self._read(source, image.video_budget))
        loop = asyncio.get_running_loop()
        async with self._threads.hold(image.owner):
            self.check_open()
            return await loop.run_in_executor(self._pool, self._work, image)

    async def _read(
        self, source: str | Path | UndecodedVideo, budget: DecodedBudget | None
    ) -> bytes | UndecodedVideo | Video:
        """Read a file, or all frames of a video that has a file for each of them."""
        if not isinstance(source, UndecodedVideo):
            return await self._fetcher.read(source)
        if isinstance(source.source, tuple):
            return await self._fetcher.run(partial(self._load_video, source, budget))
        return await self._fetcher.read_video(source)

    async def _enter_download(
        self, stack: AsyncExitStack, source: ImageSource | VideoInput, owner: Hashable
    ) -> ImageSource | VideoInput:
        self.check_open()
        with self._counting_failures():
            return await stack.enter_async_context(self._fetcher.downloaded(source, owner))

    @contextmanager
    def _counting_failures(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._meter.count("num_failures")
            raise

    def stop_accepting(self) -> None:
        """Fail the images that wait, and all later ones."""
        self._closed = True

    async def close(self, timeout_s: float = 60.0) -> None:
        """Fail the images that wait, finish those in progress, and stop the threads.

        A thread that hangs is abandoned after ``timeout_s`` seconds.
        """
        self.stop_accepting()
        await self._fetcher.stop(min(1.0, timeout_s))  # these files are no longer needed
        if not await self._pool.stop(timeout_s):
            logger.error(
                "%s.preprocess did not finish within %g s: its thread is abandoned",
                type(self._model).__name__,
                timeout_s,
            )

    def check_open(self) -> None:
        """Raise an error if the encoder was closed.

        Raises:
            EngineClosedError: the encoder was closed.
        """
        if self._closed:
            raise EngineClosedError("the image encoder was closed")

    def _load(self, source: ImageSource, budget: DecodedBudget) -> Image.Image:
        self.check_open()
        return load_image(source, self._limits, self._access, budget, background=self._background)

    def _load_video(
        self, video: UndecodedVideo, budget: DecodedBudget | None, label: str = ""
    ) -> Video:
        self.check_open()
        limits = self._video_limits
        if isinstance(video.source, bytes):
            name = label or describe(video.source, limits.kind)
            return decode_video(video.source, name, self._sampling(video), limits, budget)
        assert isinstance(video.source, tuple)  # noqa: S101  (for mypy: files were read before)
        budget = DecodedBudget(limits) if budget is None else budget
        fps = video.sampling["fps"]
        return video_from_frames(video.source, limits, self._access, budget, fps, self._limits)

    def _sampling(self, video: UndecodedVideo) -> VideoSampling:
        return video.sampled_as(self._model.video_sampling, self._video_limits.max_frames)

    def _work(self, image: ImageRequest) -> PreparedImage:
        self.check_open()
        started = time.perf_counter()
        try:
            with self._counting_failures():
                if isinstance(image.source, VideoInput):
                    return self._prepare_video(image, image.source)
                return self._prepare(image)
        finally:
            self._meter.add_time("preprocess_s", time.perf_counter() - started)

    def _prepare(self, request: ImageRequest) -> PreparedImage:
        model, source, label = self._model, request.source, request.label
        assert not isinstance(source, VideoInput)  # noqa: S101  (for mypy)
        options = dict(request.options)
        _check_options("image", options, model.image_options)
        options = self._request_options(request.num_images) | options
        file = ""
        if isinstance(source, str):  # a data URL: files were read before
            source = read_image(source, self._limits, self._access)
        if isinstance(source, bytes):
            file = file_key(
                source,
                options,
                model,
                shrink_on_load=self._shrink_on_load,
                background=self._background,
            )
            if (rows := self._cache.get(file)) is not None:
                return PreparedImage(label, self._cache.pixel_key(file), rows=rows)
            needed_size = self._needed_size if self._shrink_on_load else None
            image = decode_image(
                source,
                label,
                self._limits,
                needed_size,
                request.budget,
                background=self._background,
            )
            label = f"{label} ({image.width} x {image.height})"
        else:
            image = load_image(source, self._limits, background=self._background)
        key = image_key(image, options, model)
        if (rows := self._cache.get(key)) is not None:
            if file:
                self._cache.link(file, key)
            return PreparedImage(label, key, rows=rows)
        work = partial(model.preprocess, image, **options)
        return self._preprocess(PreparedImage(label, key, file=file), "preprocess", work)

    def _prepare_video(self, request: ImageRequest, source: VideoInput) -> PreparedImage:
        model, label = self._model, request.label
        options = dict(request.options)
        _check_options("video", options, model.video_options, SAMPLING_OPTIONS)
        file = ""
        if isinstance(source, UndecodedVideo):
            if isinstance(source.source, bytes):
                sampling = self._sampling(source)
                file = video_file_key(source.source, sampling, options, model)
                if (rows := self._cache.get(file)) is not None:
                    return PreparedImage(label, self._cache.pixel_key(file), rows=rows)
            video = self._load_video(source, request.video_budget, label)
        else:
            video = source
        label = "{} ({} frames of {} x {})".format(label, len(video.frames), *video.size)
        key = video_key(video, options, model)
        if (rows := self._cache.get(key)) is not None:
            if file:
                self._cache.link(file, key)
            return PreparedImage(label, key, rows=rows)
        work = partial(model.preprocess_frames, video, **options)
        return self._preprocess(PreparedImage(label, key, file=file), "preprocess_frames", work)

    def _preprocess(
        self, image: PreparedImage, method: str, work: Callable[[], Any]
    ) -> PreparedImage:
        """Call a method of the vision model, unless the same image or video is in use already."""
        if (known := self._prepared.get(image.key)) is not None:
            return replace(known, label=image.label, file=image.file)
        name = f"{type(self._model).__name__}.{method}"
        try:
            inputs = work()
        except VlcoreError:
            raise
        except Exception as error:
            error_type = ImageError if method == "preprocess" else VideoError
            raise error_type(
                f"{image.label}: {name} failed: {type(error).__name__}: {error}"
            ) from error
        prepared = replace(image, inputs=inputs, num_tiles=_count_tiles(name, inputs))
        self._prepared[prepared.key] = prepared
        return prepared

    def _request_options(self, num_images: int) -> dict[str, Any]:
        try:
            return dict(self._model.request_options(num_images))
        except Exception as error:
            raise PluginContractError(
                f"{type(self._model).__name__}.request_options failed for {num_images} image(s): "
                f"{type(error).__name__}: {error}"
            ) from error

    def _needed_size(self, size: tuple[int, int]) -> tuple[int, int] | None:
        try:
            return self._model.needed_size(size)
        except Exception as error:
            raise ImageError(
                f"{type(self._model).__name__}.needed_size failed for an image of "
                f"{size[0]} x {size[1]} pixels: {type(error).__name__}: {error}"
            ) from error


def _check_options(
    kind: str,
    options: Mapping[str, Any],
    known: frozenset[str],
    read_before: frozenset[str] = frozenset(),
) -> None:
    """Check the names of options, apart from those that were read before."""
    if unknown := sorted(set(options) - known):
        raise OptionError(
            f"unknown {kind} option(s) {', '.join(unknown)}: this model takes "
            f"{', '.join(sorted(known | read_before)) or 'none'}"
        )


def _count_tiles(name: str, inputs: Any) -> int:
    """Return the size of a preprocessed image in a batch.

    Raises:
        PluginContractError: the method of this name returned something else than it should.
    """
    if not isinstance(inputs, ImageInputs):
        return 1
    pixels: object = inputs.pixels
    if not isinstance(pixels, Tensor) or pixels.ndim == 0 or pixels.device.type != "cpu":
        actual = type(pixels).__name__
        if isinstance(pixels, Tensor):
            actual = f"{list(pixels.shape)} on {pixels.device}"
        raise PluginContractError(
            f"{name} must return pixels [tiles, 3, H, W] on the CPU; it returned {actual}"
        )
    num_tiles: object = count_tiles(inputs)
    if not isinstance(num_tiles, int) or (num_tiles < 1 and inputs.num_tiles is not None):
        raise PluginContractError(
            f"{name} must return num_tiles of at least 1, or None; it returned {num_tiles!r}"
        )
    return num_tiles
