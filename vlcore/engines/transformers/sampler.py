"""Sampling: choosing the next token of each running sequence from its logits."""

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
from vlcore.engines.transformers.grammars.matcher import GrammarMatcher
from vlcore.engines.transformers.penalties import TokenPenalties

INVALID_TOKEN_ID = -1
"""Takes the place of a token id where the logits hold NaN or infinity."""


def choose_tokens(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Choose the next token of every sequence, without synchronizing with the device.

    Shapes:
        logits: [sequences, vocab] float32.
        result: [sequences] int64, :data:`INVALID_TOKEN_ID` where logits are not finite.
    """
    highest, token_ids = logits.max(dim=-1)  # the maximum of values with a NaN is NaN
    is_invalid = ~highest.isfinite()
    sampled = [index for index, sampler in enumerate(samplers) if not sampler.is_greedy()]
    if sampled:
        finite = logits.masked_fill(is_invalid[:, None], 0.0)
        for index in sampled:
            token_ids[index] = samplers[index].draw(finite[index])
    return token_ids.masked_fill(is_invalid, INVALID_TOKEN_ID)


class Sampler:
    """Applies the sampling options of one answer, with transformers' logits processors.

    Args:
        config: the request's options.
        prompt_ids: the prompt's text tokens, without image placeholders, for the repetition
            penalty.
        end_token_ids: tokens that may not be generated before ``min_new_tokens``; all of them in
            the vocabulary.
        device: device of the logits.
        grammar: the state of the grammar that the answer must have, if there is one.
        choice: index of the answer among the request's ``n`` answers, each with its own seed.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompt_ids: Sequence[int],
        end_token_ids: Collection[int],
        device: torch.device,
        choice: int = 0,
        grammar: GrammarMatcher | None = None,
    ) -> None:
        def ids(values: Collection[int]) -> Tensor:
            return torch.tensor(sorted(values), dtype=torch.long, device=device)

        self._grammar = grammar
        self._end_token_ids = ids(set(end_token_ids))
        self._num_generated = 0
        self._min_new_tokens = config.min_new_tokens
        self._banned_ids = ids(set(config.bad_token_ids))
        self._initially_banned_ids = ids(set(end_token_ids) | set(config.bad_token_ids))
        self._seen_ids = torch.tensor(prompt_ids, dtype=torch.long, device=device)
        self._penalties = TokenPenalties.from_config(config, device)
        self._penalty: RepetitionPenaltyLogitsProcessor | None = None
        if config.repetition_penalty != 1:
            self._penalty = RepetitionPenaltyLogitsProcessor(float(config.repetition_penalty))
        self._generator: torch.Generator | None = None
        self._warpers = LogitsProcessorList()
        if not config.is_greedy:
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

    def is_greedy(self) -> bool:
        """Return whether the next token is the one with the highest logit."""
        options = (self._penalties, self._penalty, self._generator, self._grammar)
        is_unprocessed = all(option is None for option in options)
        return is_unprocessed and not len(self._current_banned_ids)

    def draw(self, logits: Tensor) -> Tensor:
        """Draw the next token. Call :meth:`record` if it is added to the answer.

        Shapes:
            logits: [vocab] float32, finite or -inf.
            result: int64 scalar on the same device; :data:`INVALID_TOKEN_ID` where the options
                turn the scores into NaN, or allow no token.
        """
        scores = self._scores(logits)
        if self._generator is None:
            highest, token_id = scores.max(dim=-1)
            return token_id.masked_fill(highest == -torch.inf, INVALID_TOKEN_ID)
        # The maximum is subtracted so that no temperature makes the scores overflow. The warpers
        # ignore the token ids, and are typed for FloatTensor, which no operation returns.
        warped = self._warpers(cast("Any", None), cast("Any", (scores - scores.max())[None]))
        probabilities = torch.softmax(warped[0], dim=-1)
        # The argmax after division by exponential noise is a sample from the probabilities. Unlike
        # torch.multinomial, it neither synchronizes with the device nor raises for extreme scores.
        noise = torch.empty_like(probabilities).exponential_(generator=self._generator)
        drawn = (probabilities / noise).argmax()
        return drawn.masked_fill(~probabilities.isfinite().all(), INVALID_TOKEN_ID)

    def most_likely(self, logits: Tensor, count: int) -> list[int]:
        """Return the most likely tokens that no option bans, in descending order.

        Shapes:
            logits: [vocab] float32, finite or -inf.
        """
        scores, token_ids = self._scores(logits).topk(min(count, len(logits)))
        allowed: list[int] = token_ids[scores > -torch.inf].tolist()
        return allowed

    def draw_from(self, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        """Draw the next token from the given ones, none of which an option bans.

        Shapes:
            logits: [vocab] float32, finite or -inf.
            result: as in :meth:`draw`.
        """
        candidates = torch.tensor(token_ids, device=logits.device)
        masked = torch.full_like(logits, -torch.inf)
        return self.draw(masked.index_copy(0, candidates, logits[candidates]))

    def _scores(self, logits: Tensor) -> Tensor:
        if self._penalties is not None:
            logits = self._penalties.add_bias(logits)
        if self._penalty is not None:
            seen: Any = self._seen_ids[None]
            logits = self._penalty(seen, cast("Any", logits[None]))[0]
        if self._penalties is not None:
            logits = self._penalties.subtract_penalties(logits)
        if self._grammar is not None:
            logits = logits.masked_fill(~self._allowed_by(self._grammar), -torch.inf)
        banned_ids = self._current_banned_ids
        return logits.index_fill(0, banned_ids, -torch.inf) if len(banned_ids) else logits

    def record(self, token_id: int) -> None:
        """Count a token as generated."""
        self._num_generated += 1
        if self._penalties is not None:
            self._penalties.record(token_id)
        if self._penalty is not None:
            self._seen_ids = torch.cat([self._seen_ids, self._seen_ids.new_tensor([token_id])])

    def _allowed_by(self, grammar: GrammarMatcher) -> Tensor:
        """Return the tokens that the grammar allows, and the end tokens where it is complete."""
        allowed = grammar.allowed().to(self._end_token_ids.device)
        return allowed.index_fill(0, self._end_token_ids, True) if grammar.is_accepting else allowed

    @property
    def _current_banned_ids(self) -> Tensor:
        is_early = self._num_generated < self._min_new_tokens
        return self._initially_banned_ids if is_early else self._banned_ids
