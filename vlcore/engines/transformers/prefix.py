"""``Prefix``: keys and values that the beginning of a prompt shares with another sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from vlcore.engines.transformers.cuts import last_cut
from vlcore.engines.transformers.sequence import TransformersSequence

MIN_LENGTH = 8
_MIN_SHARE = 1 / 16
"""Minimum length of a reused prefix, and its minimum share in the prompt. Attention to an empty
cache is faster, so that less would not pay."""


@dataclass(frozen=True)
class Prefix:
    """The beginning of a prompt whose keys and values need not be computed."""

    length: int = 0
    """Number of tokens."""
    sequence: TransformersSequence | None = None
    """The running sequence that begins with it; ``None`` if it is kept."""

    def for_prompt(self, sequence: TransformersSequence) -> Self:
        """Return what a prompt can reuse.

        At least one token is left to compute, and no attention group is cut.
        """
        num_tokens = sequence.num_prompt_tokens
        length = last_cut(sequence.attention_groups, min(self.length, num_tokens - 1))
        if length < max(MIN_LENGTH, _MIN_SHARE * num_tokens):
            return type(self)()
        return replace(self, length=length)
