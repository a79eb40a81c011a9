"""What the ingress and the replicas of a cluster send each other.

An error of vlcore is sent as a value: an image that cannot be decoded is a reply like any other,
and nothing that Ray should report as the failure of a replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlcore.engines.base import Engine, EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.language.prompt_inputs import PromptInputs
from vlcore.media.source import ImageSource
from vlcore.prompts.tokenization import ImageLayout, TokenizedPrompt


@dataclass(frozen=True)
class EncoderFacts:
    """What the ingress must know of the image encoder."""

    image_options: frozenset[str]
    row_width: int


@dataclass(frozen=True)
class EngineFacts:
    """What the ingress must know of the engine."""

    name: str
    offers: frozenset[str]
    max_values: Mapping[str, float]
    supports_grammars: bool
    hidden_size: int
    row_width: int
    vocab_size: int
    context_length: int
    context_limit_reason: str

    @classmethod
    def of(cls, engine: Engine) -> EngineFacts:
        """Read the facts of an engine."""
        values = {name: getattr(engine, name) for name in cls.__annotations__}
        return cls(**values | {"max_values": dict(engine.max_values)})


@dataclass(frozen=True)
class ImageMessage:
    """An image of a request on its way to an encoder."""

    source: ImageSource
    """On its way, the bytes of a file or a PIL image."""
    options: Mapping[str, Any]
    label: str
    request: str
    """Identifies the request. Requests take turns."""
    num_images: int
    """Number of images of the request."""
    max_rows: int | None = 0
    """Maximum number of embeddings, if it is known, with which the image is encoded at once; for an
    image with more, the encoder waits for a second call. ``None`` for any number."""


@dataclass(frozen=True)
class ImageReply:
    """An image that an encoder has preprocessed, or encoded."""

    key: str
    layout: ImageLayout | None
    """Layout of the embeddings; ``None`` if it is not known before the image is encoded."""
    ticket: str | None = None
    """Names the preprocessed image in its replica; ``None`` if the image is encoded."""
    was_cached: bool = False
    is_as_stated: bool = False
    """Whether the layout is the one that was known before the image was encoded."""


@dataclass(frozen=True)
class UnknownTicket:
    """The preprocessed image is no longer kept: it must be sent again."""


@dataclass(frozen=True)
class PromptMessage:
    """An :class:`~vlcore.engines.base.EngineRequest` without its image embeddings."""

    prompt: TokenizedPrompt
    config: GenerationConfig
    stop: tuple[str, ...]
    inputs: PromptInputs
    row_keys: tuple[str | None, ...]

    @classmethod
    def of(cls, request: EngineRequest) -> PromptMessage:
        """Take what is small of a request."""
        return cls(request.prompt, request.config, request.stop, request.inputs, request.row_keys)
