"""``RunningSequence``: one answer of a request while an engine generates it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from vlcore.engines.base import EngineOutput, EngineRequest, FinishReason
from vlcore.engines.detokenizer import Detokenizer
from vlcore.engines.logprobs import compute_logprobs, copy_to_host
from vlcore.engines.stop_conditions import StopConditions
from vlcore.errors import VlcoreError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Emit = Callable[[EngineOutput | VlcoreError], None]
"""Receives the chunks of an answer, or the error that ended it. Raises RuntimeError where the
receiver's event loop was closed."""


class RunningSequence:
    """One of a request's answers: decodes its tokens and emits the text in chunks until it ends.

    Args:
        request: the request.
        choice: index of the answer among the request's ``n`` answers.
        stop_conditions: the model's stop conditions.
        tokenizer: decodes the tokens.
        max_new_tokens: maximum length of the answer, in tokens.
        emit: receives the chunks, or the error that ended the answer.
    """

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
        config = request.config
        stops = stop_conditions.for_request(request)
        self.request = request
        self.choice = choice
        self.is_finished = False
        """Set when the answer has ended, failed or been cancelled; never unset."""
        self.token_ids: list[int] = []
        """The tokens of the answer so far."""
        self.num_cached = 0
        """Number of the prompt's tokens whose keys and values were reused."""
        self.end_token_ids = stops.token_ids
        """The tokens that end the answer."""
        self._max_new_tokens = max_new_tokens
        self._emit = emit
        self._detokenizer = Detokenizer(
            tokenizer,
            stops.strings,
            config.bad_words,
            skip_special_tokens=config.skip_special_tokens,
        )

    @property
    def num_remaining(self) -> int:
        """How many more tokens the answer may have."""
        return self._max_new_tokens - len(self.token_ids)

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether the request asks for the logits of the prompt's tokens."""
        return self.request.config.output_logits == "all"

    def fail(self, error: VlcoreError) -> None:
        """End the answer with an error, unless it has ended already."""
        if not self.is_finished:
            self.is_finished = True
            # A traceback would keep the tensors of its frames alive.
            self._send(error.with_traceback(None))

    def _is_allowed(self, token_id: int) -> bool:
        """Return whether a token does not complete a banned string."""
        return token_id in self.end_token_ids or self._detokenizer.allows(token_id)

    def _is_complete(self) -> bool:
        """Return whether nothing can follow the answer so far."""
        return False

    def _append(
        self,
        token_id: int,
        logits: Tensor | None,
        prompt_logits: Tensor | None = None,
        logprobs: Mapping[int, float] | None = None,
    ) -> None:
        """Add the next token to the answer, and emit the text that is final with it.

        Shapes:
            logits: [vocab] float32, the logits from which the token was chosen.
            prompt_logits: [prompt tokens, vocab] float32 on the host.

        Args:
            token_id: the next token.
            logits: where the engine returns them.
            prompt_logits: with the first token, if requested.
            logprobs: where the engine returns them; otherwise they are computed from ``logits``.
        """
        if token_id in self.end_token_ids:
            self._end(prompt_logits)
            return
        self.token_ids.append(token_id)
        text = self._detokenizer.add(token_id)
        reason: FinishReason | None = None
        if self._detokenizer.stopped:
            reason = "stop"
        elif self._is_complete() or not self.num_remaining:
            text += self._detokenizer.finish()
            is_stop = self._detokenizer.stopped or self._is_complete()
            reason = "stop" if is_stop else "length"
        config = self.request.config
        if logprobs is None and logits is not None and config.logprobs is not None:
            logprobs = compute_logprobs(logits, token_id, config.logprobs)
        output_logits: Tensor | None = None
        if logits is not None and config.output_logits is not None:
            output_logits = copy_to_host(logits[None])
        self._emit_output(
            EngineOutput(
                text,
                (token_id,),
                reason,
                self.choice,
                () if logprobs is None else (logprobs,),
                output_logits,
                prompt_logits,
                self.num_cached,
            )
        )

    def _end(self, prompt_logits: Tensor | None = None) -> None:
        """End the answer at an end token, which is not part of it."""
        text = self._detokenizer.finish()
        output = EngineOutput(text, (), "stop", self.choice, prompt_logits=prompt_logits)
        self._emit_output(replace(output, cached_tokens=self.num_cached))

    def _emit_output(self, output: EngineOutput) -> None:
        if output.finish_reason is not None:  # never unset: it may have been cancelled meanwhile
            self.is_finished = True
        self._send(output)

    def _send(self, chunk: EngineOutput | VlcoreError) -> None:
        try:
            self._emit(chunk)
        except RuntimeError:  # the receiver's event loop was closed
            self.is_finished = True
