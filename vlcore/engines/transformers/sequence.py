"""One answer in the making: what it is continued from, how it goes on and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from vlcore.engines.base import EngineOutput, EngineRequest, FinishReason
from vlcore.engines.detokenizer import Detokenizer
from vlcore.engines.logprobs import logprobs_of, to_host
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.transformers.sampler import Sampler
from vlcore.errors import EngineError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_CANDIDATES = (64, 1024)
"""How many of the likeliest tokens are tried where bad words forbid the chosen one."""


class RunningSequence:
    """One of a request's answers.

    Args:
        request: what is continued.
        choice: which of its answers this is.
        ends: what ends the model's answers.
        tokenizer: decodes them.
        max_length: of prompt and answer together, in tokens.
        vocab_size: of the model.
        device: where its logits are.
        emit: takes the pieces, or what went wrong.

    Raises:
        OptionError: the options leave no token that could come first.
    """

    def __init__(
        self,
        request: EngineRequest,
        choice: int,
        *,
        ends: StopConditions,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        vocab_size: int,
        device: torch.device,
        emit: Callable[[EngineOutput | EngineError], None],
    ) -> None:
        config = request.config
        prompt = request.prompt
        self.request = request
        self.is_finished = False
        """Set when it ended or failed, or when nobody waits for it any more."""
        self.last_id = prompt.token_ids[-1]
        self.num_tokens = len(prompt.token_ids)
        """Of prompt and answer so far."""
        self.max_num_tokens = min(self.num_tokens + config.max_new_tokens, max_length)
        self._choice = choice
        self._emit = emit
        stop_texts, self._end_ids = ends.of_request(request)
        self._detokenizer = Detokenizer(
            tokenizer, stop_texts, config.bad_words, skip_special_tokens=config.skip_special_tokens
        )
        end_ids = {token_id for token_id in self._end_ids if token_id < vocab_size}
        if config.min_new_tokens and len(end_ids | set(config.bad_token_ids)) == vocab_size:
            raise OptionError(
                "every token of the vocabulary is an end or a bad token, so that no answer can "
                f"have min_new_tokens={config.min_new_tokens}: drop some stop_token_ids"
            )
        covered = {i for span in prompt.spans for i in range(span.start, span.stop)}
        prompt_ids = [token for i, token in enumerate(prompt.token_ids) if i not in covered]
        self.sampler = Sampler(config, prompt_ids, end_ids, device, choice)

    def accept(self, token_id: int, logits: Tensor, prompt_logits: Tensor | None = None) -> None:
        """Take the next token and give out what text it makes certain.

        Shapes:
            logits: [vocab] float32, of which the token was chosen.
            prompt_logits: [prompt's tokens, vocab], with the first token, if asked for.

        Raises:
            EngineError: bad words leave no likely token.
        """
        if not self._allows(token_id):
            token_id = self._choose_allowed(logits)
        if token_id in self._end_ids:
            text = self._detokenizer.finish()
            self._give(EngineOutput(text, (), "stop", self._choice, prompt_logits=prompt_logits))
            return
        self.last_id = token_id
        self.num_tokens += 1
        self.sampler.note(token_id)
        text = self._detokenizer.add(token_id)
        reason: FinishReason | None = None
        if self._detokenizer.stopped:
            reason = "stop"
        elif self.num_tokens >= self.max_num_tokens:
            text += self._detokenizer.finish()
            reason = "stop" if self._detokenizer.stopped else "length"
        config = self.request.config
        self._give(
            EngineOutput(
                text,
                (token_id,),
                reason,
                self._choice,
                ()
                if config.logprobs is None
                else (logprobs_of(logits, token_id, config.logprobs),),
                None if config.output_logits is None else to_host(logits[None]),
                prompt_logits,
            )
        )

    def fail(self, error: EngineError) -> None:
        """End the answer with an error."""
        if not self.is_finished:
            self.is_finished = True
            self._emit(error.with_traceback(None))  # which would keep the tensors of its frames

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether the logits of the prompt's tokens are asked for."""
        return self.request.config.output_logits == "all"

    def _allows(self, token_id: int) -> bool:
        return token_id in self._end_ids or self._detokenizer.allows(token_id)

    def _choose_allowed(self, logits: Tensor) -> int:
        """Choose again, among the likely tokens that complete no bad word."""
        for count in _MAX_CANDIDATES:
            allowed = list(filter(self._allows, self.sampler.ranked(logits, count)))
            if allowed:
                return int(self.sampler.draw_among(allowed, logits))
        raise EngineError(
            f"bad_words leave none of the {_MAX_CANDIDATES[-1]} likeliest tokens: the answer "
            "cannot go on without one of them"
        )

    def _give(self, output: EngineOutput) -> None:
        if output.finish_reason is not None:  # never unset: it may have been cancelled meanwhile
            self.is_finished = True
        self._emit(output)


SequenceGroup: TypeAlias = tuple[RunningSequence, ...]
"""What one request asks for; they share its prompt."""
