"""What comes back: answers, their pieces, and sessions that remember them."""

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
from vlcore.inference.user_input import Conversation
from vlcore.prompts.messages import Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Response:
    """An answer, or the next piece of one.

    Shapes:
        logits: [tokens, vocab] float32 on the host, a row for each of ``token_ids``.
        prompt_logits: [input_token_len, vocab] float32 on the host.
    """

    text: str
    generate_token_len: int
    """Tokens generated so far."""
    input_token_len: int
    """Tokens and image rows of the prompt."""
    finish_reason: FinishReason | Literal["error"] | None = None
    """``None`` while more pieces follow; ``"error"`` where :attr:`error` says why."""
    token_ids: tuple[int, ...] = ()
    index: int = 0
    """Which prompt of a list it answers."""
    error: Exception | None = None
    """Why one prompt of a list has no answer; the others have theirs."""
    choice: int = 0
    """Which of the prompt's ``n`` answers it is, or belongs to."""
    others: tuple[Response, ...] = field(default=(), repr=False)
    """The rest of the prompt's ``n`` answers."""
    logprobs: tuple[Mapping[int, float], ...] = field(default=(), repr=False)
    """For each of ``token_ids``, if asked for: log-probabilities by token id, its own first, then
    those of the likeliest tokens."""
    logits: Tensor | None = field(default=None, repr=False, compare=False)
    """If ``output_logits`` asks for them."""
    prompt_logits: Tensor | None = field(default=None, repr=False, compare=False)
    """If ``output_logits="all"`` asks for them; in a stream, with an answer's first piece."""
    image_token_len: int = 0
    """Image rows among the prompt's ``input_token_len``."""

    @property
    def choices(self) -> tuple[Response, ...]:
        """All ``n`` answers to the prompt."""
        return (replace(self, others=()), *self.others)

    def raise_for_error(self) -> Self:
        """Raise :attr:`error` if there is one; otherwise give the response back."""
        if self.error is not None:
            raise self.error
        return self


@dataclass
class Session:
    """A conversation with its history; hand it to the next call of ``chat``."""

    conversation: Conversation | None = None
    response: Response | None = field(default=None, repr=False)
    """The last answer."""
    _is_answering: bool = field(default=False, repr=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Every turn so far, answers included."""
        return () if self.conversation is None else self.conversation.messages

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Hold the session while one question is answered.

        Raises:
            PromptError: another question is still being answered; its turn would be lost.
        """
        if self._is_answering:
            raise PromptError(
                "the session is still answering another question: wait for that answer, or close "
                "its stream"
            )
        self._is_answering = True
        try:
            yield
        finally:
            self._is_answering = False


def join_responses(pieces: Sequence[Response]) -> Response:
    """Put the pieces of a prompt's answers together."""
    answers: dict[int, list[Response]] = {}
    for piece in pieces:
        answers.setdefault(piece.choice, []).append(piece)
    first, *others = (_join_one(answers[choice]) for choice in sorted(answers))
    return replace(first, others=tuple(others))


def _join_one(pieces: Sequence[Response]) -> Response:
    logits = [piece.logits for piece in pieces if piece.logits is not None]
    return replace(
        pieces[-1],
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(chain.from_iterable(piece.token_ids for piece in pieces)),
        logprobs=tuple(chain.from_iterable(piece.logprobs for piece in pieces)),
        logits=cat(logits) if logits else None,
        prompt_logits=pieces[0].prompt_logits,
    )


def error_response(error: Exception, index: int) -> Response:
    """Say that one prompt of a list has no answer."""
    logger.warning("prompt %d was not answered: %s", index, _on_one_line(str(error)))
    return Response("", 0, 0, "error", index=index, error=error)


def _on_one_line(text: str) -> str:
    """Escape what would begin a new line of a log or steer a terminal."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
