"""``ExternalSequence``: an answer whose tokens another library chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from vlcore.engines.base import EngineRequest
from vlcore.engines.external.continuation import Continuation
from vlcore.engines.logprobs import copy_to_host
from vlcore.engines.sequence import Emit, RunningSequence
from vlcore.engines.stop_conditions import StopConditions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ExternalSequence(RunningSequence):
    """One of a request's answers at an engine that samples the tokens by itself."""

    def __init__(
        self,
        request: EngineRequest,
        choice: int,
        *,
        stop_conditions: StopConditions,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        emit: Emit,
    ) -> None:
        super().__init__(
            request,
            choice,
            stop_conditions=stop_conditions,
            tokenizer=tokenizer,
            max_new_tokens=max_new_tokens,
            emit=emit,
        )
        self.banned_token_ids: set[int] = set()
        """Tokens that would complete a banned string if they came next."""

    def continuation(self, vocab_size: int) -> Continuation:
        """Return what is missing of the answer.

        Args:
            vocab_size: size of the library's vocabulary. End tokens outside of it are left out.
        """
        return Continuation(
            config=self.request.config,
            end_token_ids=self.end_token_ids.intersection(range(vocab_size)),
            banned_token_ids=self.banned_token_ids,
            # While tokens are banned, the answer is continued token by token.
            max_new_tokens=1 if self.banned_token_ids else self.num_remaining,
            num_generated=len(self.token_ids),
            choice=self.choice,
        )

    def accept(
        self,
        token_ids: Sequence[int],
        logits: Tensor | None = None,
        prompt_logits: Tensor | None = None,
        logprobs: Sequence[Mapping[int, float]] | None = None,
    ) -> bool:
        """Add the next tokens to the answer, and emit the text that is final with them.

        Shapes:
            logits: [tokens, vocab], from which the tokens were chosen.
            prompt_logits: [prompt tokens, vocab], emitted with the first token, if requested.

        Args:
            token_ids: the next tokens.
            logits: their logits, where the engine returns them.
            prompt_logits: the logits of the prompt, where the engine returns them.
            logprobs: the log-probabilities for each of ``token_ids``, where the engine returns
                them instead of logits.

        Returns:
            False where a token would complete a banned string: it and the following ones were not
            added.
        """
        for position, token_id in enumerate(token_ids):
            if self.is_finished:
                break
            if not self._is_allowed(token_id):
                self.banned_token_ids.add(token_id)
                return False
            self.banned_token_ids.clear()
            is_first = self.wants_prompt_logits and not self.token_ids
            self._append(
                token_id,
                None if logits is None else logits[position].float(),
                copy_to_host(prompt_logits.float())
                if is_first and prompt_logits is not None
                else None,
                None if logprobs is None else logprobs[position],
            )
        return True

    def end(self) -> None:
        """End the answer where the engine stopped and did not return the end token."""
        if not self.is_finished:
            self._end()
