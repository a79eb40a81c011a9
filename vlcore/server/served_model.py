"""``ServedModel``, the interface of what the server serves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from vlcore.engines.base import Engine
from vlcore.engines.generation import GenerationConfig
from vlcore.inference.response import Response
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.conversation import Conversation
from vlcore.vision.stats import EncoderStats


class ServedModel(Protocol):
    """A model whose requests run on the server's event loop; a :class:`~vlcore.Pipeline` is one."""

    @property
    def template(self) -> ChatTemplate:
        """Chat template of the model."""

    @property
    def engine(self) -> Engine:
        """Engine that runs the language model."""

    @property
    def image_options(self) -> frozenset[str]:
        """Names of the options that an image may have."""

    def token_text(self, token_id: int) -> str:
        """Return the text of a token, with U+FFFD for an incomplete character."""

    def encoder_stats(self) -> EncoderStats:
        """Return the statistics of the image encoder."""

    def astream_infer(
        self, prompts: Conversation, gen_config: GenerationConfig
    ) -> AsyncGenerator[Response]:
        """Generate the response to one prompt, as a stream."""
