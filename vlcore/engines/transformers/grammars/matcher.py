"""``GrammarMatcher``: the state of a grammar in one answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

_MAX_STEP_S = 1.0
"""Processor time of one step, after which an answer fails. llguidance's own limits end a step after
milliseconds; where they do not, an answer must not slow down the others again and again."""


class GrammarMatcher:
    """Follows an answer token by token, and computes which tokens may come next.

    After each token, the next mask is computed in another thread, while the model computes the
    logits.

    Args:
        matcher: llguidance's matcher.
        vocab_size: size of the model's vocabulary.
        special_token_ids: special tokens and end tokens, which are no text of an answer.
        max_step_s: processor time that one mask may take.
    """

    def __init__(
        self,
        matcher: Any,
        vocab_size: int,
        special_token_ids: Sequence[int] = (),
        max_step_s: float = _MAX_STEP_S,
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._special_token_ids = tuple(special_token_ids)
        self._max_step_s = max_step_s
        self._mask: Tensor | None = None
        self._future: Future[Tensor] | None = None
        self.error: str | None = None
        """Why the grammar cannot be followed any longer; no token is allowed then."""
        self.is_accepting = False
        """Whether the answer may end here."""
        self.is_complete = False
        """Whether the answer must end here, because nothing can follow."""
        self._read_state()

    def copy(self) -> Self:
        """Return a matcher in the same state, for another answer."""
        matcher = self._matcher.deep_copy()
        other = type(self)(matcher, self._vocab_size, self._special_token_ids, self._max_step_s)
        other._mask = self._mask
        return other

    def allowed(self) -> Tensor:
        """Return which tokens may come next, without end tokens.

        Shapes:
            result: [vocab] bool, on the host; all ``False`` if there is an :attr:`error`.
        """
        if self._mask is None:
            self._mask = self._compute() if self._future is None else self._future.result()
            self._future = None
        return self._mask

    def accept(self, token_id: int, executor: Executor) -> None:
        """Advance by a token of the answer, and start to compute the next mask."""
        self.allowed()  # no other call of the matcher may run at the same time
        self._mask = None
        self._matcher.consume_token(token_id)
        self._read_state()
        if not self.is_complete:
            self._future = executor.submit(self._compute)

    def _read_state(self) -> None:
        if self._matcher.is_error():
            self.error = " ".join(self._matcher.get_error().split())[:300]
        self.is_accepting = self.error is None and self._matcher.is_accepting()
        self.is_complete = self.error is None and self._matcher.is_stopped()

    def _compute(self) -> Tensor:
        started = time.thread_time()
        bits = b"" if self.error else self._matcher.compute_bitmask()
        if self.error is None and self._matcher.is_error():
            self._read_state()
        elif time.thread_time() - started > self._max_step_s:
            self.error = "one step of it takes too long"
        if self.error is not None:
            return torch.zeros(self._vocab_size, dtype=torch.bool)
        mask = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
        mask = mask[: self._vocab_size].astype(bool)
        mask[list(self._special_token_ids)] = False
        return torch.from_numpy(mask)
