"""Chooses the next token of each running sequence from its logits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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

from vlcore.engines.generation import GenerationConfig

DAMAGED = -1
"""Stands for the token of a row that holds NaN or infinity."""


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Choose a token for every row, without waiting for the device.

    Shapes:
        logits: [rows, vocab] float32.
        result: [rows] int64, :data:`DAMAGED` where logits are not finite.
    """
    highest, token_ids = logits.max(dim=-1)  # of a row with NaN, that is NaN
    damaged = ~highest.isfinite()
    rows = [row for row, sampler in enumerate(samplers) if not sampler.takes_argmax()]
    if rows:
        usable = logits.masked_fill(damaged[:, None], 0.0)
        for row in rows:
            token_ids[row] = samplers[row].draw(usable[row])
    return token_ids.masked_fill(damaged, DAMAGED)


class Sampler:
    """The options of one answer, as transformers' logits processors.

    Args:
        config: the request's options.
        prompt_ids: the prompt's own tokens, for the repetition penalty; no image fillers.
        end_ids: tokens of the vocabulary that may not come before ``min_new_tokens``.
        device: where the logits are.
        choice: which of the request's answers; each draws differently.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompt_ids: Sequence[int],
        end_ids: Collection[int],
        device: torch.device,
        choice: int = 0,
    ) -> None:
        def ids(values: Collection[int]) -> Tensor:
            return torch.tensor(sorted(values), dtype=torch.long, device=device)

        self._num_generated = 0
        self._min_new_tokens = config.min_new_tokens
        self._bad_ids = ids(set(config.bad_token_ids))
        self._bad_ids_at_first = ids(set(end_ids) | set(config.bad_token_ids))
        self._seen_ids = torch.tensor(prompt_ids, dtype=torch.long, device=device)
        self._penalty: RepetitionPenaltyLogitsProcessor | None = None
        if config.repetition_penalty != 1:
            self._penalty = RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty))
        self._generator: torch.Generator | None = None
        self._warpers = LogitsProcessorList()
        if config.do_sample:
            self._generator = torch.Generator(device)
            if config.random_seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed((config.random_seed + choice) % 2**64)
            self._warpers.append(TemperatureLogitsWarper(float(config.temperature)))
            if config.top_k > 0:
                self._warpers.append(TopKLogitsWarper(config.top_k))
            if config.top_p < 1:
                self._warpers.append(TopPLogitsWarper(float(config.top_p)))
            if config.min_p > 0:
                self._warpers.append(MinPLogitsWarper(float(config.min_p)))

    def takes_argmax(self) -> bool:
        """Whether the next token is simply the most likely one."""
        plain = self._penalty is None and self._generator is None
        return plain and not len(self._forbidden)

    def draw(self, logits: Tensor) -> Tensor:
        """Draw the next token. It counts as generated once it is given to :meth:`note`.

        Shapes:
            logits: [vocab] float32, finite or -inf.
            result: an int64 without dimensions, on the same device; :data:`DAMAGED` where the
                options make NaN of the scores.
        """
        scores = self._scores(logits)
        if self._generator is None:
            return scores.argmax()
        # Shifted, so that no temperature makes it overflow. The warpers look at no token ids, and
        # are typed for FloatTensor, which no operation returns.
        warped = self._warpers(cast("Any", None), cast("Any", (scores - scores.max())[None]))
        probabilities = torch.softmax(warped[0], dim=-1)
        # The likeliest after division by exponential noise is a draw by the probabilities. It never
        # waits for the device, and never raises for what extreme options make of the scores.
        noise = torch.empty_like(probabilities).exponential_(generator=self._generator)
        drawn = (probabilities / noise).argmax()
        return drawn.masked_fill(~probabilities.isfinite().all(), DAMAGED)

    def ranked(self, logits: Tensor, count: int) -> list[int]:
        """The likeliest tokens that no option forbids, in order.

        Shapes:
            logits: [vocab] float32, finite or -inf.
        """
        scores, token_ids = self._scores(logits).topk(min(count, len(logits)))
        ranked: list[int] = token_ids[scores > -torch.inf].tolist()
        return ranked

    def draw_among(self, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        """Draw the next token among a few that no option forbids.

        Shapes:
            as :meth:`draw`.
        """
        few = torch.tensor(token_ids, device=logits.device)
        return self.draw(torch.full_like(logits, -torch.inf).index_copy(0, few, logits[few]))

    def _scores(self, logits: Tensor) -> Tensor:
        if self._penalty is not None:
            seen: Any = self._seen_ids[None]
            logits = self._penalty(seen, cast("Any", logits[None]))[0]
        return logits.index_fill(0, self._forbidden, -torch.inf) if len(self._forbidden) else logits

    def note(self, token_id: int) -> None:
        """Count a token as generated."""
        self._num_generated += 1
        if self._penalty is not None:
            self._seen_ids = torch.cat([self._seen_ids, self._seen_ids.new_tensor([token_id])])

    @property
    def _forbidden(self) -> Tensor:
        is_early = self._num_generated < self._min_new_tokens
        return self._bad_ids_at_first if is_early else self._bad_ids
