"""What comes back: answers, their pieces, and sessions that remember them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self

from vlcore.conversation import Conversation
from vlcore.engines.base import FinishReason
from vlcore.errors import PromptError
from vlcore.template import Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Response:
    """An answer, or the next piece of one."""

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


def join(pieces: Sequence[Response]) -> Response:
    """Put the pieces of one answer together."""
    last = pieces[-1]
    return Response(
        "".join(piece.text for piece in pieces),
        last.generate_token_len,
        last.input_token_len,
        last.finish_reason,
        tuple(token_id for piece in pieces for token_id in piece.token_ids),
        last.index,
    )


def failed(error: Exception, index: int) -> Response:
    """Say that one prompt of a list has no answer."""
    logger.warning("prompt %d was not answered: %s", index, error)
    return Response("", 0, 0, "error", (), index, error)
