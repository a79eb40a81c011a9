"""Draws the next token of one sequence from its logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlcore.engines.base import GenerationConfig


class Sampler:
    """The options of one request, as transformers' logits processors.

    Args:
        config: the request's options.
        prompt_ids: the prompt's own tokens, for the repetition penalty; no image fillers.
        end_ids: tokens that may not come before ``min_new_tokens``.
        device: where the logits are.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompt_ids: Sequence[int],
        end_ids: Iterable[int],
        device: torch.device,
    ) -> None:
        self._config = config
        self._prompt_ids = list(prompt_ids)
        self._end_ids = sorted(end_ids)
        self._device = device
        self._processors = LogitsProcessorList()
        if config.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        self._generator: torch.Generator | None = None
        if config.do_sample:
            self._generator = torch.Generator(device)
            if config.random_seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(config.random_seed)
            self._processors.append(TemperatureLogitsWarper(float(config.temperature)))
            if config.top_k > 0:
                self._processors.append(TopKLogitsWarper(config.top_k))
            if config.top_p < 1:
                self._processors.append(TopPLogitsWarper(float(config.top_p)))
            if config.min_p > 0:
                self._processors.append(MinPLogitsWarper(float(config.min_p)))

    def takes_argmax(self, num_generated: int) -> bool:
        """Whether the next token is simply the most likely one."""
        return not self._processors and num_generated >= self._config.min_new_tokens

    def draw(self, logits: Tensor, generated: Sequence[int]) -> int:
        """Draw the next token.

        Shapes:
            logits: [vocab] float32.
        """
        if len(generated) < self._config.min_new_tokens:
            logits = logits.clone()
            logits[[token_id for token_id in self._end_ids if token_id < len(logits)]] = -torch.inf
        token_ids = torch.tensor(
            [[*self._prompt_ids, *generated]], dtype=torch.long, device=self._device
        )
        scores = self._processors(cast("Any", token_ids), cast("Any", logits[None]))
        if self._generator is None:
            return int(scores.argmax())
        probabilities = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
