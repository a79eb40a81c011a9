"""``EncoderReplica``: an image encoder, without the prompts and the language model."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import TypeAlias

from vlcore._utils.device import as_device, choose_dtype
from vlcore.cluster.arguments import ClusterArguments
from vlcore.cluster.messages import EncoderFacts, ImageMessage, ImageReply, UnknownTicket
from vlcore.cluster.packing import PackedRows, pack
from vlcore.errors import VlcoreError
from vlcore.media.policy import ImageAccess
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.tokenization import ImageLayout
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.image_request import ImageRequest
from vlcore.vision.model import image_layout
from vlcore.vision.prepared_image import PreparedImage
from vlcore.vision.stats import EncoderStats

_Value: TypeAlias = PackedRows | ImageReply | UnknownTicket | VlcoreError | None

_MAX_TICKETS = 128
"""Maximum number of preprocessed images whose request has not continued yet."""
_TICKET_S = 30.0
"""Time for which a preprocessed image is kept."""


class EncoderReplica:
    """Encodes images that an ingress has fetched.

    An image takes two calls if its prompt may turn out to be too long: the prompt is then refused
    between them. Both calls of an image reach the replica that consistent hashing selects.

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

    async def prepare(self, image: ImageMessage) -> AsyncGenerator[_Value]:
        """Decode and preprocess an image, and encode it if its request has room in any case.

        Yields:
            The embeddings, or ``None`` if there are none yet; then the reply, or an error. The
            ingress reads the second value alone, and knows by it that the first is complete.
        """
        request = ImageRequest(
            image.source, image.options, image.label, image.request, num_images=image.num_images
        )
        rows: PackedRows | None = None
        reply: ImageReply | VlcoreError
        try:
            prepared = await self._encoder.prepare_one(request)
            if prepared.rows is not None or _has_room(prepared.layout, image.max_rows):
                rows, reply = await self._encode(prepared, image.request)
            else:
                ticket = self._keep(prepared, image.request)
                reply = ImageReply(prepared.key, prepared.layout, ticket)
        except VlcoreError as error:
            reply = error
        yield rows
        yield reply

    async def encode(self, ticket: str) -> AsyncGenerator[_Value]:
        """Encode a preprocessed image.

        Yields:
            The embeddings, or ``None``; then the reply, or why there are none.
        """
        rows: PackedRows | None = None
        reply: ImageReply | UnknownTicket | VlcoreError = UnknownTicket()
        if (kept := self._prepared.pop(ticket, None)) is not None:
            try:
                rows, reply = await self._encode(*kept)
            except VlcoreError as error:
                reply = error
        yield rows
        yield reply

    async def _encode(self, prepared: PreparedImage, request: str) -> tuple[PackedRows, ImageReply]:
        (encoded,) = await self._encoder.encode_prepared([prepared], owner=request)
        layout, known = image_layout(encoded), prepared.layout
        return pack(encoded.rows), ImageReply(
            prepared.key,
            layout,
            was_cached=prepared.rows is not None,
            is_as_stated=known is not None
            and known.num_rows == layout.num_rows
            and known.layout is layout.layout,
        )

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


def _has_room(layout: ImageLayout | None, max_rows: int | None) -> bool:
    return max_rows is None or (layout is not None and layout.num_rows <= max_rows)
