"""An application of Ray Serve that measures how long image embeddings take between deployments."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import psutil
import torch
from PIL import Image
from ray import serve

from vlcore.cluster.encoder_replica import EncoderReplica
from vlcore.cluster.engine_replica import EngineReplica
from vlcore.cluster.messages import EncoderFacts, EngineFacts
from vlcore.cluster.packing import PackedRows
from vlcore.cluster.remote_encoder import RemoteEncoder
from vlcore.cluster.remote_engine import RemoteEngine
from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.media.policy import ImageAccess, ImageLimits
from vlcore.prompts.tokenization import Span, TokenizedPrompt
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import VisionModel

SHAPE = (576, 4096)
_BASE = 1000  # float16 holds integers up to 2048
_COMPUTED, _SENT = slice(3), slice(3, 6)
"""Where embeddings state the times."""


class StampedModel(VisionModel):
    """Returns embeddings that state the microsecond in which they were computed."""

    hidden_size = SHAPE[1]

    def forward(self, inputs: Sequence[Any]) -> Sequence[torch.Tensor]:
        """Return rows of the shape of LLaVA 1.5, with the time in the first numbers."""
        rows = [torch.zeros(SHAPE, dtype=torch.float16) for _ in inputs]
        for row in rows:
            row[0, _COMPUTED] = torch.tensor(_digits(), dtype=torch.float16)
        return rows


class ArrivalEngine(Engine):
    """Answers with the microseconds that the embeddings of the prompt's image have travelled."""

    name = "arrival"
    hidden_size = SHAPE[1]
    vocab_size = 2
    context_length = 4096

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        """Read when the embeddings were computed, and when they left the encoder."""
        arrived = _now_us()
        (rows,) = request.rows
        if tuple(rows.shape) != SHAPE or rows.dtype is not torch.float16:
            raise RuntimeError(f"embeddings of another shape arrived: {rows.shape}, {rows.dtype}")
        starts = rows[0, _COMPUTED].tolist(), rows[0, _SENT].view(torch.int16).tolist()
        times_us = [(arrived - _number(digits)) % _BASE**3 for digits in starts]
        yield EngineOutput(" ".join(map(str, times_us)), (0,), "length")

    def stats(self) -> EngineStats:
        """Count nothing."""
        return EngineStats(0, 0)

    async def close(self) -> None:
        """Free nothing."""


class RowsEncoder(EncoderReplica):
    """A replica of an encoder that computes nothing."""

    def __init__(self) -> None:
        super().__init__(ImageEncoder(StampedModel(), rows_device="cpu", cache_bytes=0))

    async def encode(self, ticket: str) -> AsyncGenerator[Any]:
        """Encode an image, and write into its embeddings when they leave the replica."""
        async for reply in super().encode(ticket):
            if isinstance(reply, PackedRows):
                reply.bits[0, _SENT] = _digits()
            yield reply


class RowsLanguageModel(EngineReplica):
    """A replica of a language model that computes nothing."""

    def __init__(self) -> None:
        super().__init__(ArrivalEngine())


class RowsProbe:
    """What the ingress does with an image and its prompt."""

    def __init__(self, encoder: Any, language_model: Any) -> None:
        facts = EncoderFacts(frozenset(), SHAPE[1])
        self._encoder = RemoteEncoder(encoder, facts, ImageLimits(), ImageAccess())
        self._engine = RemoteEngine(language_model, EngineFacts.of(ArrivalEngine()))

    async def measure(self, num_images: int) -> tuple[list[tuple[float, float]], float]:
        """Return two times in milliseconds for each image, and by how many MiB this process grew.

        The times are those from the end of the forward pass, and from the encoder's reply.
        """
        times_ms = []
        before = psutil.Process().memory_info().rss
        for number in range(num_images):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(buffer, "PNG")
            prepared = await self._encoder.prepare([buffer.getvalue()])
            (image,) = await self._encoder.encode_prepared(prepared)
            prompt = TokenizedPrompt((0,) * SHAPE[0], (Span(0, SHAPE[0], 0, 0),))
            request = EngineRequest(prompt, (image.rows,))
            outputs = [output async for output in self._engine.generate(request)]
            computed_us, sent_us = map(int, outputs[0].text.split())
            times_ms.append((computed_us / 1000, sent_us / 1000))
        return times_ms, (psutil.Process().memory_info().rss - before) / 2**20


def application() -> Any:
    """Compose the application."""
    options = {"ray_actor_options": {"num_cpus": 0}}
    encoder = serve.deployment(**options)(RowsEncoder).bind()
    language_model = serve.deployment(**options)(RowsLanguageModel).bind()
    return serve.deployment(**options)(RowsProbe).bind(encoder, language_model)


def _now_us() -> int:
    return time.monotonic_ns() // 1000


def _digits() -> list[int]:
    now = _now_us()
    return [now // _BASE**position % _BASE for position in range(3)]


def _number(digits: Sequence[float]) -> int:
    return sum(int(digit) * _BASE**position for position, digit in enumerate(digits))
