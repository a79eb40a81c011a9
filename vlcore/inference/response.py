"""``Response``, a response or a chunk of one, and ``Session``, a conversation with its history."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, Self

from torch import Tensor, cat

from vlcore.engines.base import FinishReason
from vlcore.errors import PromptError
from vlcore.prompts.conversation import Conversation
from vlcore.prompts.messages import Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Response:
    """The response to a prompt, or the next chunk of it in a stream.

    In a chunk, ``text``, ``token_ids``, ``logprobs`` and ``logits`` are those of the chunk alone.

    Shapes:
        logits: [tokens, vocab] float32 on the host, one row for each of ``token_ids``.
        prompt_logits: [input_token_len, vocab] float32 on the host.
    """

    text: str
    """Generated text, without the prompt."""
    generate_token_len: int
    """Number of tokens generated so far."""
    input_token_len: int
    """Number of tokens of the prompt, including one for each image embedding."""
    finish_reason: FinishReason | Literal["error"] | None = None
    """Why the response ended: ``"stop"`` at an end token or stop string, ``"length"`` at a limit of
    its length, ``"error"`` if the prompt failed with :attr:`error`. ``None`` while more chunks
    follow."""
    token_ids: tuple[int, ...] = ()
    """Ids of the generated tokens."""
    index: int = 0
    """Index of the prompt in a list of prompts."""
    error: Exception | None = None
    """Exception that the prompt failed with, if it is one of a list; otherwise it is raised."""
    choice: int = 0
    """Index of the response among the ``n`` responses to the prompt."""
    others: tuple[Response, ...] = field(default=(), repr=False)
    """The other ``n - 1`` responses to the prompt."""
    logprobs: tuple[Mapping[int, float], ...] = field(default=(), repr=False)
    """Log-probabilities by token id for each of ``token_ids``: its own first, followed by those of
    the most likely tokens. Empty unless ``logprobs`` is set."""
    logits: Tensor | None = field(default=None, repr=False, compare=False)
    """Logits of the generated tokens. ``None`` unless ``output_logits`` is set."""
    prompt_logits: Tensor | None = field(default=None, repr=False, compare=False)
    """Logits of the prompt. ``None`` unless ``output_logits`` is ``"all"``; in a stream, part of
    the first chunk."""
    image_token_len: int = 0
    """Number of embeddings of images in the prompt, which :attr:`input_token_len` includes."""
    video_token_len: int = 0
    """Number of embeddings of videos in the prompt, which :attr:`input_token_len` includes."""
    cached_tokens: int = field(default=0, compare=False)
    """Number of the prompt's tokens, image embeddings included, that were not computed, because the
    engine had kept their keys and values."""

    @property
    def choices(self) -> tuple[Response, ...]:
        """All ``n`` responses to the prompt."""
        return (replace(self, others=()), *self.others)

    def raise_for_error(self) -> Self:
        """Raise :attr:`error` if there is one, and return the response otherwise."""
        if self.error is not None:
            raise self.error
        return self


@dataclass
class Session:
    """A conversation with its history, for the next call of :meth:`Pipeline.chat`.

    A new session is empty. Each call appends a prompt and its response. Only one request may use a
    session at a time.
    """

    conversation: Conversation | None = None
    """The messages, images and videos so far. ``None`` before the first response."""
    response: Response | None = field(default=None, repr=False)
    """The last response. ``None`` before the first one."""
    _is_reserved: bool = field(default=False, repr=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages so far, including the responses."""
        return () if self.conversation is None else self.conversation.messages

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Reserve the session for one request.

        Raises:
            PromptError: The session is in use by another request, whose messages would be lost.
        """
        if self._is_reserved:
            raise PromptError(
                "the session is in use by another request: wait for its response, or close its "
                "stream"
            )
        self._is_reserved = True
        try:
            yield
        finally:
            self._is_reserved = False


def join_responses(chunks: Sequence[Response]) -> Response:
    """Join the chunks of all responses to a prompt."""
    choices: dict[int, list[Response]] = {}
    for chunk in chunks:
        choices.setdefault(chunk.choice, []).append(chunk)
    first, *others = (_join_choice(choices[choice]) for choice in sorted(choices))
    return replace(first, others=tuple(others))


def _join_choice(chunks: Sequence[Response]) -> Response:
    logits = [chunk.logits for chunk in chunks if chunk.logits is not None]
    return replace(
        chunks[-1],
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(chain.from_iterable(chunk.token_ids for chunk in chunks)),
        logprobs=tuple(chain.from_iterable(chunk.logprobs for chunk in chunks)),
        logits=cat(logits) if logits else None,
        prompt_logits=chunks[0].prompt_logits,
    )


def error_response(error: Exception, index: int) -> Response:
    """Log the failure of one prompt of a list, and return the response that reports it."""
    logger.warning("prompt %d failed: %s", index, _on_one_line(str(error)))
    return Response("", 0, 0, "error", index=index, error=error)


def _on_one_line(text: str) -> str:
    """Escape characters that would start a new line of a log or control a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
