"""``TokenPenalties``: OpenAI's penalties and bias on the logits of one answer."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from vlcore.engines.generation import GenerationConfig


class TokenPenalties:
    """The bias of each token, and its penalties for being in the answer already.

    Args:
        config: the request's options.
        device: device of the logits.

    Source:
        https://platform.openai.com/docs/guides/text-generation (``logit[j] - count[j] *
        frequency_penalty - (count[j] > 0) * presence_penalty``). The bias is added before, and the
        penalties are subtracted after, a repetition penalty, as vLLM does.
    """

    def __init__(self, config: GenerationConfig, device: torch.device) -> None:
        self._frequency_penalty = float(config.frequency_penalty)
        self._presence_penalty = float(config.presence_penalty)
        self._device = device
        self._biased_ids = self._ids(list(config.logit_bias))
        biases = list(map(float, config.logit_bias.values()))
        self._biases = torch.tensor(biases, dtype=torch.float32, device=device)
        self._indexes: dict[int, int] = {}
        """Index of each generated token in the following tensors."""
        self._generated_ids = self._ids([])
        self._counts = torch.zeros(0, dtype=torch.float32, device=device)

    @classmethod
    def from_config(cls, config: GenerationConfig, device: torch.device) -> Self | None:
        """Return the penalties that a request asks for, or ``None`` if it asks for none."""
        is_penalized = config.frequency_penalty != 0 or config.presence_penalty != 0
        return cls(config, device) if is_penalized or config.logit_bias else None

    def add_bias(self, logits: Tensor) -> Tensor:
        """Add the bias of each token.

        Shapes:
            logits: [vocab] float32; it is not changed.
            result: [vocab] float32.
        """
        if not len(self._biased_ids):
            return logits
        return logits.index_add(0, self._biased_ids, self._biases)

    def subtract_penalties(self, logits: Tensor) -> Tensor:
        """Subtract the penalties of the tokens in the answer.

        Shapes:
            logits: [vocab] float32; it is not changed.
            result: [vocab] float32.
        """
        if not len(self._generated_ids):
            return logits
        penalties = self._counts * self._frequency_penalty + self._presence_penalty
        return logits.index_add(0, self._generated_ids, penalties, alpha=-1)

    def record(self, token_id: int) -> None:
        """Count a token of the answer."""
        if not (self._frequency_penalty or self._presence_penalty):
            return
        index = self._indexes.setdefault(token_id, len(self._indexes))
        if index == len(self._generated_ids):
            self._generated_ids = torch.cat([self._generated_ids, self._ids([token_id])])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(1)])
        self._counts[index] += 1

    def _ids(self, token_ids: list[int]) -> Tensor:
        return torch.tensor(token_ids, dtype=torch.long, device=self._device)
