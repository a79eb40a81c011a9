"""``TransformersSequence``: a running sequence whose tokens are sampled from the model's logits."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from vlcore.engines.base import EngineRequest
from vlcore.engines.sequence import Emit, RunningSequence
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.transformers.cuts import group_columns
from vlcore.engines.transformers.grammars.matcher import GrammarMatcher
from vlcore.engines.transformers.prefix_key import PrefixKey, common_length
from vlcore.engines.transformers.regions import Region
from vlcore.engines.transformers.sampler import Sampler
from vlcore.errors import EngineError, GrammarError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOT_FINITE = (
    "the logits are NaN or infinite, because of the model's dtype or of extreme sampling options: "
    "try another dtype, or less extreme options"
)
_MAX_CANDIDATES = (64, 1024)
"""How many of the most likely tokens are tried, in two attempts, where the sampled token would
complete a banned string."""


class TransformersSequence(RunningSequence):
    """One of a request's answers in the embedded engine.

    Args:
        request: the request.
        choice: index of the answer among the request's ``n`` answers.
        stop_conditions: the model's stop conditions.
        tokenizer: decodes the tokens.
        max_length: maximum length of prompt and answer together, in tokens.
        vocab_size: size of the model's vocabulary.
        device: device of the logits.
        prefix_key: what its keys and values depend on; ``None`` without prefix caching.
        emit: receives the chunks, or the error that ended the answer.
        grammar: the grammar that the answer must have, in its first state, if there is one.
        executor: computes which tokens the grammar allows.

    Raises:
        OptionError: the options allow no token as the first one.
    """

    def __init__(
        self,
        request: EngineRequest,
        choice: int,
        *,
        stop_conditions: StopConditions,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        vocab_size: int,
        device: torch.device,
        emit: Emit,
        grammar: GrammarMatcher | None = None,
        executor: Executor | None = None,
        prefix_key: PrefixKey | None = None,
    ) -> None:
        config = request.config
        prompt = request.prompt
        self.max_num_tokens = min(len(prompt.token_ids) + config.max_new_tokens, max_length)
        """Maximum length of prompt and answer together, in tokens."""
        super().__init__(
            request,
            choice,
            stop_conditions=stop_conditions,
            tokenizer=tokenizer,
            max_new_tokens=self.max_num_tokens - len(prompt.token_ids),
            emit=emit,
        )
        self.last_token_id = prompt.token_ids[-1]
        self.prefix_key = prefix_key
        groups = request.inputs.attention_groups
        self.attention_groups = () if groups is None else tuple(group_columns(groups).values())
        """The columns of each attention group of the prompt."""
        self.num_computed = 0
        """Number of tokens whose keys and values are in the cache."""
        self.num_reusable = 0
        """Number of these tokens after which the logits were finite."""
        self.region: Region | None = None
        """The columns of the cache that belong to the sequence."""
        end_token_ids = {token_id for token_id in self.end_token_ids if token_id < vocab_size}
        if config.min_new_tokens and len(end_token_ids | set(config.bad_token_ids)) == vocab_size:
            raise OptionError(
                "every token of the vocabulary is an end token or one of bad_token_ids, so no "
                f"answer can have min_new_tokens={config.min_new_tokens}: remove some "
                "stop_token_ids or bad_token_ids"
            )
        covered = {i for span in prompt.spans for i in range(span.start, span.stop)}
        text_token_ids = [token for i, token in enumerate(prompt.token_ids) if i not in covered]
        self._grammar = grammar
        self._executor = executor
        self.sampler = Sampler(config, text_token_ids, end_token_ids, device, choice, grammar)

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt, in tokens."""
        return len(self.request.prompt.token_ids)

    @property
    def num_tokens(self) -> int:
        """Length of the prompt and the answer so far, in tokens."""
        return self.num_prompt_tokens + len(self.token_ids)

    @property
    def reusable_elements(self) -> list[Hashable]:
        """What the reusable keys and values depend on; empty without prefix caching."""
        if self.prefix_key is None:
            return []
        return self.prefix_key.with_answer(self.token_ids)[: self.num_reusable]

    def num_common(self, elements: Sequence[Hashable]) -> int:
        """Return how many reusable tokens a prompt of the given elements begins with."""
        if self.prefix_key is None:
            return 0
        length = common_length(self.prefix_key.elements, elements)
        if length == self.num_prompt_tokens:
            length = common_length(self.reusable_elements, elements)
        return min(length, self.num_reusable)

    def accept(self, token_id: int, logits: Tensor, prompt_logits: Tensor | None = None) -> None:
        """Add a sampled token, or another one where it would complete a banned string.

        Shapes:
            logits: [vocab] float32, the logits from which the token was sampled.
            prompt_logits: [prompt tokens, vocab] float32 on the host, together with the first
                token, if requested.

        Raises:
            EngineError: every likely token would complete a banned string.
        """
        if not self._is_allowed(token_id):
            replacement = self._sample_allowed(logits)
            if replacement is None:
                self._end(prompt_logits)
                return
            token_id = replacement
        if token_id not in self.end_token_ids:
            self.last_token_id = token_id
            self.sampler.record(token_id)
            if self._grammar is not None and self._executor is not None:
                self._grammar.accept(token_id, self._executor)
        self._append(token_id, logits, prompt_logits)

    def accept_none(self, logits: Tensor) -> None:
        """End the answer, or fail, where no token could be sampled.

        Shapes:
            logits: [vocab] float32, the model's logits.
        """
        grammar = self._grammar
        if grammar is None or not logits.max().isfinite():
            self.fail(EngineError(_NOT_FINITE))
        elif grammar.error is not None:
            self.fail(
                GrammarError(
                    f"the grammar cannot be followed after {len(self.token_ids)} tokens of the "
                    f"answer, because {grammar.error}: simplify it"
                )
            )
        elif grammar.is_accepting:
            self._end()
        else:
            self.fail(
                EngineError(
                    "the other options exclude all tokens that the grammar allows after "
                    f"{len(self.token_ids)} tokens of the answer: remove bad_token_ids"
                )
            )

    def _is_complete(self) -> bool:
        return self._grammar is not None and self._grammar.is_complete

    def _sample_allowed(self, logits: Tensor) -> int | None:
        """Sample again, among the most likely tokens that complete no banned string.

        Returns:
            The token; ``None`` where there is none and the grammar allows the answer to end.
        """
        for count in _MAX_CANDIDATES:
            allowed = list(filter(self._is_allowed, self.sampler.most_likely(logits, count)))
            if allowed:
                return int(self.sampler.draw_from(allowed, logits))
        if self._grammar is not None and self._grammar.is_accepting:
            return None
        raise EngineError(
            f"bad_words exclude all of the {_MAX_CANDIDATES[-1]} most likely next tokens, so the "
            "answer cannot be continued: use fewer or longer bad_words"
        )


SequenceGroup: TypeAlias = tuple[TransformersSequence, ...]
"""The answers of one request, which share its prompt."""
