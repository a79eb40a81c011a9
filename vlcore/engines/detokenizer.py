"""``Detokenizer``: the text of an answer, decoded incrementally while its tokens are generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "�"
_MAX_INCOMPLETE_TOKENS = 8
"""How many tokens may wait for the end of a character. A character has at most four bytes, so after
this many tokens the bytes are invalid, or the tokens end in the middle of different characters."""


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
        # The text of a token can depend on the one before it. The decoded window therefore begins
        # with tokens whose text is known already.
        self._window: list[int] = []
        self._num_known = 0
        """How many tokens at the beginning of the window have known text."""
        self._window_text = ""
        self._num_final = 0
        """How many characters of the window's text are final."""
        self._held = ""
        """Final text that may be the beginning of a stop string."""

    def allows(self, token_id: int) -> bool:
        """Return whether the answer would contain no banned string after this token."""
        if not self._bad:
            return True
        new = self._decode([*self._window, token_id])[self._num_final :]
        for stop in self._stop:  # text after a stop string is dropped
            if (index := (self._held + new).find(stop)) >= 0:
                new = new[: max(0, index - len(self._held))]
        context = self._tail + new
        return not any(bad in context for bad in self._bad)

    def add(self, token_id: int) -> str:
        """Add a token, and return the text that is final with it."""
        window = [*self._window, token_id]
        text = self._decode(window)
        if text == self._window_text and self._is_skipped(token_id):
            return ""
        self._window, self._window_text = window, text
        is_incomplete = text.endswith(_REPLACEMENT) or len(text) <= self._num_final
        if is_incomplete and len(window) - self._num_known < _MAX_INCOMPLETE_TOKENS:
            return ""
        # Only the last character can still change, because no character has as many bytes.
        num_open = int(text.endswith(_REPLACEMENT) and len(text) > self._num_final)
        new = text[self._num_final : len(text) - num_open]
        self._window = window[self._num_known :]
        self._num_known = len(self._window)
        self._window_text = self._decode(self._window)
        self._num_final = max(0, len(self._window_text) - num_open)
        if self._max_overlap:
            self._tail = (self._tail + new)[-self._max_overlap :]
        return self._release(new)

    def finish(self) -> str:
        """Return the rest of the text, with U+FFFD for an incomplete character."""
        text = self._release(self._window_text[self._num_final :])
        self._num_final = len(self._window_text)
        if self.stopped:
            return text
        rest, self._held = self._held, ""
        return text + rest

    def _is_skipped(self, token_id: int) -> bool:
        """Return whether decoding ignores a token, so that the window does not need it."""
        tokenizer = self._tokenizer
        if tokenizer.convert_ids_to_tokens(token_id) is None:  # not in the vocabulary
            return True
        shown = tokenizer.decode([token_id], skip_special_tokens=False)
        return shown != self._decode([token_id])

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
