"""``RemoteEncoder``: the image encoder of a request runner, on the replicas of a deployment."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

from PIL import Image
from ray import ObjectRef
from ray.serve.context import _set_request_context
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from vlcore._utils.gather import gather_or_cancel
from vlcore.cluster.failures import ReplicaDiedError, translated, unavailable
from vlcore.cluster.messages import EncoderFacts, ImageMessage, ImageReply, UnknownTicket
from vlcore.errors import ImageLimitError, VlcoreError
from vlcore.media.fetcher import ImageFetcher
from vlcore.media.image import check_image, load_image
from vlcore.media.policy import DecodedBudget, ImageAccess, ImageLimits
from vlcore.media.source import ImageSource
from vlcore.media.undecoded_video import VideoInput
from vlcore.media.video import Video
from vlcore.prompts.tokenization import ImageLayout
from vlcore.vision.image_request import NO_OPTIONS, image_label
from vlcore.vision.interface import check_videos
from vlcore.vision.model import ImageRows
from vlcore.vision.stats import EncoderStats, Meter

_T = TypeVar("_T")

_MAX_ATTEMPTS = 4
"""Number of times that an image is sent, if replicas die: an image may be what kills them."""


@dataclass(frozen=True)
class RemoteRows:
    """The embeddings of an image in Ray's object store; the request runner needs their number."""

    ref: ObjectRef
    num_rows: int

    def __len__(self) -> int:
        return self.num_rows


@dataclass(frozen=True)
class RemoteImage:
    """An image that a replica has preprocessed."""

    message: ImageMessage
    digest: str
    """Digest of the file, by which all requests with the image reach one replica."""
    reply: ImageReply
    ref: ObjectRef | None
    """The embeddings, if the image is encoded already."""

    @property
    def key(self) -> str:
        """Key of the image's content."""
        return self.reply.key

    @property
    def layout(self) -> ImageLayout | None:
        """Layout of the image's embeddings, if it is known before the image is encoded."""
        return self.reply.layout


class RemoteEncoder:
    """Fetches and checks images here, and encodes them elsewhere; the embeddings never come here.

    If a replica dies, its images are sent to another one: encoding them twice has no effect.

    Args:
        handle: The deployment of the encoders.
        facts: What its replicas have in common.
        limits: Limits for each image and for the images of a request.
        access: Sources that images may be read from.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        facts: EncoderFacts,
        limits: ImageLimits,
        access: ImageAccess,
    ) -> None:
        self._handle = handle.options(stream=True, _by_reference=True)
        self._limits = limits
        self._fetcher = ImageFetcher(limits, access)
        self._meter = Meter()
        self.image_options = facts.image_options
        self.takes_video = False

    async def prepare(
        self,
        images: Sequence[ImageSource | VideoInput],
        options: Sequence[Mapping[str, Any]] | None = None,
        *,
        room: int = 0,
    ) -> list[RemoteImage]:
        """Fetch the images of one request, check them, and have them preprocessed.

        Those that certainly fit into the prompt are encoded in the same call.
        """
        images = self._without_videos(images)
        budget = self._budget(images)
        self._meter.count("num_images", len(images))
        options = [NO_OPTIONS] * len(images) if options is None else options
        request = uuid.uuid4().hex
        total = len(images)
        max_rows = room // max(total, 1)
        labels = [image_label(source, number, total) for number, source in enumerate(images, 1)]
        messages = [
            ImageMessage(source, dict(image_options), label, request, total, max_rows)
            for source, image_options, label in zip(images, options, labels, strict=True)
        ]
        return await gather_or_cancel(
            self._counted(self._prepare(message, budget)) for message in messages
        )

    async def encode_prepared(self, images: Sequence[RemoteImage]) -> list[ImageRows]:
        """Have prepared images encoded; the result refers to embeddings in the object store."""
        return await gather_or_cancel(self._counted(self._encode(image)) for image in images)

    async def load(self, sources: Sequence[ImageSource | VideoInput]) -> list[Image.Image | Video]:
        """Read and decode the images of one request here, without encoding them."""
        sources = self._without_videos(sources)
        budget = self._budget(sources)
        owner = uuid.uuid4().hex

        async def load(source: ImageSource) -> Image.Image | Video:
            async with self._fetcher.downloaded(source, owner) as fetched:
                data = await self._fetcher.read(fetched) if isinstance(fetched, str) else fetched
                decode = partial(load_image, data, self._limits, budget=budget)
                return await self._fetcher.run(decode)

        return await gather_or_cancel(map(load, sources))

    def stats(self) -> EncoderStats:
        """Count the images of this ingress; batches and times are known to the replicas only."""
        return self._meter.stats()

    async def close(self) -> None:
        """Stop the threads that read files."""
        await self._fetcher.stop(1.0)

    def _without_videos(self, media: Sequence[ImageSource | VideoInput]) -> list[ImageSource]:
        """Return the images of a request.

        Raises:
            VideoError: there are videos too, which the replicas do not take.
        """
        check_videos(self, media)
        return [source for source in media if not isinstance(source, VideoInput)]

    def _budget(self, images: Sequence[ImageSource]) -> DecodedBudget:
        if len(images) > self._limits.max_images:
            raise ImageLimitError(
                f"the request has {len(images)} images, more than "
                f"max_images={self._limits.max_images} of vlcore.ImageLimits"
            )
        return DecodedBudget(self._limits)

    async def _prepare(self, message: ImageMessage, budget: DecodedBudget) -> RemoteImage:
        async with self._fetcher.downloaded(message.source, message.request) as fetched:
            if not isinstance(fetched, Image.Image):
                fetched = await self._fetcher.read(fetched)
            digest = await self._fetcher.run(partial(self._check, fetched, message.label, budget))
            message = replace(message, source=fetched)
            return await self._with_retries(partial(self._send, message, digest))

    def _check(self, source: bytes | Image.Image, label: str, budget: DecodedBudget) -> str:
        """Check an image as far as possible without decoding it, and return its digest."""
        if isinstance(source, Image.Image):
            return hashlib.sha256(source.tobytes()).hexdigest()
        check_image(source, label, self._limits, budget)
        return hashlib.sha256(source).hexdigest()

    async def _send(self, message: ImageMessage, digest: str) -> RemoteImage:
        """Have an image preprocessed by the replica that consistent hashing selects."""
        ref, reply = await self._call("prepare", digest, message)
        if reply.ticket is None:
            self._meter.count("num_cache_hits" if reply.was_cached else "num_encoded")
        return RemoteImage(message, digest, reply, None if reply.ticket is not None else ref)

    async def _encode(self, image: RemoteImage) -> ImageRows:
        return await self._with_retries(partial(self._encode_once, image))

    async def _encode_once(self, image: RemoteImage) -> ImageRows:
        if image.ref is not None:
            return _as_rows(image.ref, image.layout)
        ref, reply = await self._call("encode", image.digest, image.reply.ticket)
        if isinstance(reply, UnknownTicket):
            message = replace(image.message, max_rows=None)  # the prompt is not too long
            return await self._encode_once(await self._send(message, image.digest))
        self._meter.count("num_encoded")
        return _as_rows(ref, image.layout if reply.is_as_stated else reply.layout)

    async def _call(self, method: str, digest: str, argument: object) -> tuple[ObjectRef, Any]:
        """Call a replica that sends embeddings, and a reply that confirms them.

        Returns:
            A reference to the embeddings, which are not fetched, and the reply.

        Raises:
            ReplicaDiedError: The replica died. The reference was then one to Ray's error.
            VlcoreError: The reply is an error.
        """
        # Serve's router finds a waiting call by the id of its request, and would lose all calls but
        # one of those that a request makes at a time. Each image has a task and a context.
        _set_request_context(_internal_request_id=uuid.uuid4().hex)
        handle = self._handle.options(method_name=method, session_id=digest)
        with translated("image encoder"):
            response = handle.remote(argument)
            try:
                refs = await response._to_object_ref_gen()
                ref = await anext(refs)
                reply = await (await anext(refs))
            except StopAsyncIteration:
                raise ReplicaDiedError from None
            except BaseException:
                response.cancel()
                raise
        if isinstance(reply, VlcoreError):
            raise reply
        return ref, reply

    async def _counted(self, work: Awaitable[_T]) -> _T:
        """Count an image that fails, or whose request is cancelled."""
        try:
            return await work
        except asyncio.CancelledError:
            self._meter.count("num_cancelled")
            raise
        except Exception:
            self._meter.count("num_failures")
            raise

    async def _with_retries(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        for _ in range(_MAX_ATTEMPTS - 1):
            try:
                return await attempt()
            except ReplicaDiedError:
                await asyncio.sleep(0)
        try:
            return await attempt()
        except ReplicaDiedError:
            raise unavailable(
                f"{_MAX_ATTEMPTS} replicas of the image encoder have died on the image"
            ) from None


def _as_rows(ref: ObjectRef, layout: ImageLayout | None) -> ImageRows:
    if layout is None:
        raise RuntimeError("a replica of the image encoder has stated no layout of an image")
    return ImageRows(cast("Tensor", RemoteRows(ref, layout.num_rows)), layout.layout)
