"""``Continuation``: what another library is asked to generate of an answer."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from vlcore.engines.generation import GenerationConfig


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """An answer, or what is missing of it, in the terms that libraries share."""

    config: GenerationConfig
    """The request's options."""
    end_token_ids: Collection[int]
    """Tokens that end the answer."""
    banned_token_ids: Collection[int] = ()
    """Tokens that may not come next, in addition to ``bad_token_ids``."""
    max_new_tokens: int
    """Maximum number of tokens to generate."""
    num_generated: int = 0
    """Number of tokens of the answer that the prompt ends with."""
    choice: int = 0
    """Index of the answer among the request's ``n`` answers, each with its own seed."""

    @property
    def min_new_tokens(self) -> int:
        """Number of tokens to generate before an end token is allowed."""
        if not self.end_token_ids:
            return 0
        return max(0, self.config.min_new_tokens - self.num_generated)

    @property
    def sampling_options(self) -> dict[str, Any]:
        """The options of sampling whose names and meanings are the same in each library."""
        return {
            "temperature": float(self.config.temperature),
            "top_k": self.config.top_k,
            "top_p": float(self.config.top_p),
            "min_p": float(self.config.min_p),
        }

    def choose_seed(self, num_bits: int) -> int:
        """Return the seed of the answer's next tokens, a random one if the request has none.

        Args:
            num_bits: size of the library's seeds.
        """
        seed = self.config.random_seed
        if seed is None:
            return random.getrandbits(num_bits)
        return (seed + self.choice + self.num_generated) % (1 << num_bits)
