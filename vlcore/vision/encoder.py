"""``ImageEncoder``: encodes the images and videos of all requests with one ``VisionModel``.

When the device becomes free, the images that wait form the next batch, regardless of the requests
they belong to; the encoder never waits for a batch to fill. An image that fails does not affect the
others. The encoder knows nothing of prompts or engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

import torch
from PIL import Image

from vlcore._utils.device import as_device
from vlcore._utils.gather import gather_or_cancel
from vlcore._utils.progress import progress_bar
from vlcore.errors import (
    EngineClosedError,
    ImageLimitError,
    OptionError,
    VideoLimitError,
    VlcoreError,
)
from vlcore.media.policy import DEFAULT_LIMITS, TRUSTING, DecodedBudget, ImageAccess, ImageLimits
from vlcore.media.source import ImageSource
from vlcore.media.undecoded_video import VideoInput
from vlcore.media.video import Video, VideoLimits
from vlcore.media.video_loader import DEFAULT_VIDEO_LIMITS
from vlcore.vision.batch_executor import label_error
from vlcore.vision.device_runner import make_device_runner
from vlcore.vision.embedding_cache import EmbeddingCache
from vlcore.vision.image_request import NO_OPTIONS, ImageRequest, image_label, is_video
from vlcore.vision.interface import check_videos
from vlcore.vision.model import ImageRows, VisionModel
from vlcore.vision.prepared_image import PreparedImage
from vlcore.vision.preprocessing import ImagePreprocessor
from vlcore.vision.scheduler import ImageQueue, Scheduler
from vlcore.vision.stats import EncoderStats, Meter

_T = TypeVar("_T")


class EncoderOptions(TypedDict, total=False):
    """The keyword arguments of :class:`ImageEncoder`, for code that passes them on."""

    max_batch_size: int
    max_batch_tiles: int | None
    cache_bytes: int
    max_pending: int | None
    image_limits: ImageLimits
    video_limits: VideoLimits
    image_access: ImageAccess
    rows_device: torch.device | str | None
    cuda_graphs: bool
    torch_compile: bool | Mapping[str, Any]
    shrink_on_load: bool
    image_background: str | None


class ImageEncoder:
    """Encodes images of concurrent requests in shared batches.

    Use an encoder within one event loop: ``async with ImageEncoder(model) as encoder``. Images are
    read, decoded and preprocessed in thread pools, and the model runs in separate threads, never on
    the event loop.

    Args:
        vision_model: the vision model, or several replicas of it on different devices, which share
            one queue.
        max_batch_size: maximum number of images in a forward pass.
        max_batch_tiles: maximum number of tiles in a forward pass of more than one image; ``None``
            for four times ``max_batch_size``. An image of a model without tiles counts as one.
        cache_bytes: maximum size of the cache of image embeddings, in bytes.
        max_pending: maximum number of images of all requests that are being read, preprocessed or
            encoded; further images wait before anything is read or decoded. ``None`` for four
            batches.
        image_limits: limits for each image and for the images of a request.
        video_limits: limits for each video and for the videos of a request.
        image_access: sources that images and videos may be read from; any by default.
        rows_device: device for the image embeddings, including the cached ones; ``None`` leaves
            them on the device of the model.
        cuda_graphs: on CUDA, capture the vision encoder as a CUDA graph at the first batch of a few
            sizes.
        torch_compile: compile the vision encoder at its first batch, with these options of
            ``torch.compile`` or, if true, with its defaults. Only a plugin's ``tower`` is compiled
            or captured.
        shrink_on_load: let the JPEG decoder reduce images that are much larger than the model
            needs, which is fast; their embeddings differ slightly.
        image_background: colour behind transparent pixels, such as ``"white"``; ``None`` for that
            of the vision model, most of which drop the transparency.

    Raises:
        OptionError: a limit is out of range, the background is not a colour, or the replicas
            differ.
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
        video_limits: VideoLimits = DEFAULT_VIDEO_LIMITS,
        image_access: ImageAccess = TRUSTING,
        rows_device: torch.device | str | None = None,
        cuda_graphs: bool = True,
        torch_compile: bool | Mapping[str, Any] = False,
        shrink_on_load: bool = False,
        image_background: str | None = None,
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
        self.image_background = (
            self.vision_model.image_background if image_background is None else image_background
        )
        self._limits = image_limits
        self._video_limits = video_limits
        self._meter = Meter()
        self._cache = EmbeddingCache(cache_bytes)
        self._preprocessor = ImagePreprocessor(
            self.vision_model,
            self._cache,
            limits=image_limits,
            video_limits=video_limits,
            access=image_access,
            max_pending=max_pending,
            meter=self._meter,
            shrink_on_load=shrink_on_load,
            background=self.image_background,
        )
        self._queue = ImageQueue(max_batch_size, self._meter)
        runners = [
            make_device_runner(
                model,
                rows_device=None if rows_device is None else as_device(rows_device),
                cuda_graphs=cuda_graphs,
                torch_compile=torch_compile,
            )
            for model in models
        ]
        self._scheduler = Scheduler(
            runners, self._queue, self._cache, max_tiles=max_batch_tiles, meter=self._meter
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

    @property
    def image_options(self) -> frozenset[str]:
        """Names of the options that an image may have, such as ``detail``."""
        return self.vision_model.image_options

    @property
    def takes_video(self) -> bool:
        """Whether the vision model takes videos."""
        return self.vision_model.takes_video

    async def encode(
        self,
        images: Sequence[ImageSource | VideoInput],
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[ImageRows]:
        """Encode the images and videos of one request, in order.

        Args:
            images: paths, URLs, bytes of files or PIL images, and :class:`~vlcore.Video` values.
            options: options for each image and video, which the vision model must know.

        Shapes:
            rows: [k, row_width] for each image, on the model's device, in its dtype.

        Raises:
            OptionError: an image option is unknown.
            ImageError: an image cannot be read or encoded.
            ImageLimitError: there are too many images, or they are too large.
            VideoError: a video cannot be read or encoded, or the vision model takes no videos.
            VideoLimitError: there are too many videos, or they are too large.
            PluginContractError: the vision model did not return image embeddings.
            EngineClosedError: the encoder was closed.
        """
        requests = self._requests(images, options, self._budget(images))
        return await gather_or_cancel([self._encode(request) for request in requests])

    async def encode_many(
        self,
        images: Sequence[ImageSource | VideoInput],
        options: Sequence[Mapping[str, Any]] | None = None,
        *,
        progress: bool = False,
    ) -> list[ImageRows | VlcoreError]:
        """Encode images like :meth:`encode`, and return errors for those that fail.

        Each image is encoded as the only one of a request.
        """
        requests = [replace(one, num_images=1) for one in self._requests(images, options)]
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

            return await gather_or_cancel([encode(request) for request in requests])

    async def prepare(
        self,
        images: Sequence[ImageSource | VideoInput],
        options: Sequence[Mapping[str, Any]] | None = None,
        *,
        room: int = 0,  # noqa: ARG002  (here, the second step costs no time)
    ) -> list[PreparedImage]:
        """Read, decode and preprocess images and videos, the first step of :meth:`encode`."""
        requests = self._requests(images, options, self._budget(images))
        return await gather_or_cancel([self._preprocessor.prepare(request) for request in requests])

    async def prepare_one(self, image: ImageRequest) -> PreparedImage:
        """Prepare one image of a request whose other images may be prepared elsewhere."""
        self._preprocessor.check_open()
        self._meter.count("num_images")
        return await self._preprocessor.prepare(image)

    async def encode_prepared(
        self, images: Sequence[PreparedImage], owner: Hashable | None = None
    ) -> list[ImageRows]:
        """Encode preprocessed images and videos, the second step of :meth:`encode`.

        Args:
            images: the images.
            owner: the request that they belong to, if these are not all of its images.
        """
        self._preprocessor.check_open()
        owner = object() if owner is None else owner
        return await gather_or_cancel([self._rows(image, owner) for image in images])

    async def load(self, sources: Sequence[ImageSource | VideoInput]) -> list[Image.Image | Video]:
        """Read and decode the images and videos of one request, without encoding them."""
        check_videos(self, sources)
        return await self._preprocessor.load(sources, self._budget(sources))

    def stats(self) -> EncoderStats:
        """Take a snapshot of the statistics."""
        return self._meter.stats(
            num_waiting=len(self._queue),
            max_batch_tiles=self._scheduler.max_tiles,
            cached_images=len(self._cache),
            cached_bytes=self._cache.num_bytes,
        )

    async def close(self, timeout_s: float = 60.0) -> None:
        """Fail the waiting images, finish the running batches, and stop the threads.

        A batch that has not finished within ``timeout_s`` seconds fails too, and its thread is
        abandoned.
        """
        self._preprocessor.stop_accepting()
        closed = EngineClosedError("the image encoder was closed")
        self._queue.fail_waiting(closed)
        await self._scheduler.close(timeout_s)
        self._queue.fail_all(closed)
        await self._preprocessor.close(timeout_s)

    def _requests(
        self,
        images: Sequence[ImageSource | VideoInput],
        options: Sequence[Mapping[str, Any]] | None,
        budget: DecodedBudget | None = None,
    ) -> list[ImageRequest]:
        """Combine the images and videos of one request with their options and labels."""
        self._preprocessor.check_open()
        check_videos(self, images)
        options = [NO_OPTIONS] * len(images) if options is None else options
        pairs = list(zip(images, options, strict=True))
        self._meter.count("num_images", len(pairs))
        owner = object()
        totals = Counter(is_video(source) for source in images)
        video_budget = DecodedBudget(self._video_limits)
        numbers = Counter[bool]()
        requests = []
        for source, image_options in pairs:
            kind = is_video(source)
            numbers[kind] += 1
            label = image_label(source, numbers[kind], totals[kind])
            requests.append(
                ImageRequest(
                    source,
                    image_options,
                    label,
                    owner,
                    budget,
                    num_images=totals[False],
                    video_budget=video_budget,
                )
            )
        return requests

    def _budget(self, images: Sequence[ImageSource | VideoInput]) -> DecodedBudget:
        num_videos = sum(map(is_video, images))
        if len(images) - num_videos > self._limits.max_images:
            raise ImageLimitError(
                f"the request has {len(images) - num_videos} images, more than "
                f"max_images={self._limits.max_images} of vlcore.ImageLimits"
            )
        if num_videos > self._video_limits.max_videos:
            raise VideoLimitError(
                f"the request has {num_videos} videos, more than "
                f"max_videos={self._video_limits.max_videos} of vlcore.VideoLimits"
            )
        return DecodedBudget(self._limits)

    async def _encode(self, request: ImageRequest) -> ImageRows:
        async with self._preprocessor.admitted(request) as admitted:
            image = await self._preprocessor.prepare_admitted(admitted)
            return await self._rows(image, request.owner)

    async def _rows(self, image: PreparedImage, owner: Hashable) -> ImageRows:
        self._preprocessor.check_open()
        rows = image.rows or self._cache.get(image.key)
        if rows is not None:
            self._meter.count("num_cache_hits")
            return rows
        job = self._queue.add(image, owner)
        self._scheduler.schedule()
        outcome = await self._queue.wait(job)
        if isinstance(outcome, Exception):
            raise label_error(outcome, self.vision_model, image.label)
        if image.file:
            self._cache.link(image.file, image.key)
        return outcome


def _check_replicas(models: Sequence[VisionModel]) -> None:
    if not models:
        raise OptionError("an image encoder needs a vision model; the list of replicas is empty")
    identities = {
        (type(model).__name__, model.row_width, model.dtype, model.fingerprint) for model in models
    }
    if len(identities) > 1:
        raise OptionError(
            "replicas must be copies of one model (class, row_width, dtype, fingerprint); these "
            f"differ: {sorted(map(str, identities))}"
        )


def _check_limit(name: str, value: object, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise OptionError(f"{name} must be an integer of at least {minimum}; it is {value!r}")
