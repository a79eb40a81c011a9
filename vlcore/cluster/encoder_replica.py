"""``EncoderReplica``: an image encoder, without the prompts and the language model."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator

from vlcore._utils.device import as_device, choose_dtype
from vlcore.cluster.arguments import ClusterArguments
from vlcore.cluster.messages import (
    EncodedReply,
    EncoderFacts,
    ImageMessage,
    PreparedReply,
    UnknownTicket,
)
from vlcore.cluster.packing import PackedRows, pack
from vlcore.errors import VlcoreError
from vlcore.media.policy import ImageAccess
from vlcore.plugins.stages import ModelStages
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import ImageRows, image_layout
from vlcore.vision.preprocessing import ImageRequest, PreparedImage
from vlcore.vision.stats import EncoderStats

_MAX_TICKETS = 128
"""Maximum number of preprocessed images whose request has not continued yet."""
_TICKET_S = 30.0
"""Time for which a preprocessed image is kept."""


class EncoderReplica:
    """Encodes images that an ingress has fetched.

    An image takes two calls, so that a prompt that turns out to be too long is refused between
    them. Both calls of an image reach the replica that consistent hashing selects.

    Args:
        encoder: The image encoder. Nothing is opened by name here: its image access should allow
            no files and no URLs.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder
        self._prepared: OrderedDict[str, tuple[PreparedImage, str]] = OrderedDict()
        """The preprocessed images and their requests, by ticket, the oldest first."""

    def facts(self) -> EncoderFacts:
        """Return what the ingress must know."""
        return EncoderFacts(self._encoder.image_options, self._encoder.vision_model.row_width)

    def stats(self) -> EncoderStats:
        """Take a snapshot of the statistics."""
        return self._encoder.stats()

    async def prepare(
        self, image: ImageMessage
    ) -> AsyncGenerator[PreparedReply | EncodedReply | VlcoreError | PackedRows]:
        """Decode and preprocess an image.

        Yields:
            The reply, or an error. If the embeddings were cached, they follow, and then a reply
            that confirms them.
        """
        request = ImageRequest(
            image.source, image.options, image.label, image.request, num_images=image.num_images
        )
        try:
            prepared = await self._encoder.prepare_one(request)
        except VlcoreError as error:
            yield error
            return
        if prepared.rows is not None:
            yield PreparedReply(prepared.key, prepared.layout, ticket=None)
            (encoded,) = await self._encoder.encode_prepared([prepared])  # counts the cache hit
            yield pack(encoded.rows)
            yield EncodedReply(None)
        else:
            yield PreparedReply(prepared.key, prepared.layout, self._keep(prepared, image.request))

    async def encode(
        self, ticket: str
    ) -> AsyncGenerator[PackedRows | EncodedReply | UnknownTicket | VlcoreError | None]:
        """Encode a preprocessed image.

        Yields:
            The embeddings, or ``None``; then a reply that confirms them, or why there are none.
            The ingress reads the second value alone, and knows by it that the first is complete.
        """
        if (kept := self._prepared.pop(ticket, None)) is None:
            yield None
            yield UnknownTicket()
            return
        prepared, request = kept
        try:
            (encoded,) = await self._encoder.encode_prepared([prepared], owner=request)
        except VlcoreError as error:
            yield None
            yield error
            return
        yield pack(encoded.rows)
        yield EncodedReply(None if _is_known(prepared, encoded) else image_layout(encoded))

    async def close(self) -> None:
        """Fail the waiting images, and stop the threads."""
        await self._encoder.close()

    def _keep(self, prepared: PreparedImage, request: str) -> str:
        ticket = uuid.uuid4().hex
        self._prepared[ticket] = prepared, request
        if len(self._prepared) > _MAX_TICKETS:
            self._prepared.popitem(last=False)
        asyncio.get_running_loop().call_later(_TICKET_S, self._prepared.pop, ticket, None)
        return ticket


def load_encoder(arguments: ClusterArguments) -> ImageEncoder:
    """Load the vision model of a replica."""
    stages = ModelStages(arguments.model, plugin=arguments.plugin, revision=arguments.revision)
    device = as_device(arguments.encoder_device)
    dtype = choose_dtype(arguments.dtype, device, stages.checkpoint.config)
    return ImageEncoder(
        stages.vision_model(device, dtype),
        image_access=ImageAccess(urls=False),
        image_limits=arguments.limits,
        rows_device="cpu",
        **arguments.encoder,
    )


def _is_known(prepared: PreparedImage, encoded: ImageRows) -> bool:
    """Return whether the layout is the one that was known before the image was encoded."""
    known, actual = prepared.layout, image_layout(encoded)
    if known is None:
        return False
    return known.num_rows == actual.num_rows and known.layout is actual.layout
