"""Text of an answer while its tokens arrive: whole characters only, never a stop or bad text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "�"


class Detokenizer:
    """Turns arriving token ids into text.

    Bytes of an unfinished character are held back, and so is text that may be the beginning of
    a stop text. What was given out never changes.

    Args:
        tokenizer: decodes.
        stop: texts that end the answer.
        bad: texts that may not appear in it; ask :meth:`allows` before each :meth:`add`.
        skip_special_tokens: leave special tokens out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        bad: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self.stopped = False
        """Whether a stop text was met; text after it is dropped."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._bad = tuple(bad)
        self._bad_reach = max(map(len, self._bad), default=1) - 1
        self._tail = ""
        self._skip_special_tokens = skip_special_tokens
        self._token_ids: list[int] = []
        # Decoding starts at a token whose text is known, because a piece's text can depend on
        # the piece before it.
        self._start = 0
        self._given = 0
        self._held = ""

    def allows(self, token_id: int) -> bool:
        """Whether the answer would hold no bad text with this token."""
        if not self._bad:
            return True
        known = self._decode(self._token_ids[self._start : self._given])
        text = self._decode([*self._token_ids[self._start :], token_id])
        new = text[len(known) :]
        for stop in self._stop:  # what comes after it is dropped
            if (place := (self._held + new).find(stop)) >= 0:
                new = new[: max(0, place - len(self._held))]
        seen = self._tail + new
        return not any(bad in seen for bad in self._bad)

    def add(self, token_id: int) -> str:
        """Take a token and give the text that is now certain."""
        self._token_ids.append(token_id)
        known = self._decode(self._token_ids[self._start : self._given])
        text = self._decode(self._token_ids[self._start :])
        if text.endswith(_INCOMPLETE) or len(text) <= len(known):
            return ""
        self._start, self._given = self._given, len(self._token_ids)
        text = text[len(known) :]
        if self._bad_reach:
            self._tail = (self._tail + text)[-self._bad_reach :]
        return self._release(text)

    def finish(self) -> str:
        """Give the rest, an unfinished character as U+FFFD."""
        known = self._decode(self._token_ids[self._start : self._given])
        text = self._release(self._decode(self._token_ids[self._start :])[len(known) :])
        self._given = len(self._token_ids)
        if self.stopped:
            return text
        rest, self._held = self._held, ""
        return text + rest

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
        assert isinstance(text, str)  # noqa: S101  (for mypy: one sequence gives one text)
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
