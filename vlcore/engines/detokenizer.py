"""``Detokenizer``: the text of an answer, decoded incrementally while its tokens are generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "�"


class Detokenizer:
    """Decodes token ids into text incrementally.

    Bytes of an incomplete character are held back, and so is text that may be the beginning of a
    stop string. Text that was returned never changes.

    Args:
        tokenizer: decodes the tokens.
        stop: stop strings, which end the answer.
        bad: banned strings, which may not appear in the answer; call :meth:`allows` before each
            :meth:`add`.
        skip_special_tokens: leave special tokens out of the text.
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
        """Whether a stop string was found; it and the text after it are dropped."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._bad = tuple(bad)
        self._max_overlap = max(map(len, self._bad), default=1) - 1
        """How many characters of a banned string can be in the text before a token."""
        self._tail = ""
        """The end of the decoded text, as far as a banned string can begin in it."""
        self._skip_special_tokens = skip_special_tokens
        self._token_ids: list[int] = []
        # Decoding starts with tokens whose text is known already, because the text of a token can
        # depend on the one before it.
        self._start = 0
        self._num_decoded = 0
        self._held = ""
        """Decoded text that may be the beginning of a stop string."""

    def allows(self, token_id: int) -> bool:
        """Return whether the answer would contain no banned string after this token."""
        if not self._bad:
            return True
        known = self._decode(self._token_ids[self._start : self._num_decoded])
        text = self._decode([*self._token_ids[self._start :], token_id])
        new = text[len(known) :]
        for stop in self._stop:  # text after a stop string is dropped
            if (index := (self._held + new).find(stop)) >= 0:
                new = new[: max(0, index - len(self._held))]
        window = self._tail + new
        return not any(bad in window for bad in self._bad)

    def add(self, token_id: int) -> str:
        """Add a token, and return the text that is final with it."""
        self._token_ids.append(token_id)
        known = self._decode(self._token_ids[self._start : self._num_decoded])
        text = self._decode(self._token_ids[self._start :])
        if text.endswith(_INCOMPLETE) or len(text) <= len(known):
            return ""
        self._start, self._num_decoded = self._num_decoded, len(self._token_ids)
        text = text[len(known) :]
        if self._max_overlap:
            self._tail = (self._tail + text)[-self._max_overlap :]
        return self._release(text)

    def finish(self) -> str:
        """Return the rest of the text, with U+FFFD for an incomplete character."""
        known = self._decode(self._token_ids[self._start : self._num_decoded])
        text = self._release(self._decode(self._token_ids[self._start :])[len(known) :])
        self._num_decoded = len(self._token_ids)
        if self.stopped:
            return text
        rest, self._held = self._held, ""
        return text + rest

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
        assert isinstance(text, str)  # noqa: S101  (for mypy: one sequence gives one text)
        return text

    def _release(self, text: str) -> str:
        """Return the part of the held and the new text that belongs to the answer for certain."""
        if self.stopped:
            return ""
        text = self._held + text
        indexes = [index for index in map(text.find, self._stop) if index >= 0]
        if indexes:
            self.stopped, self._held = True, ""
            return text[: min(indexes)]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
