"""One answer of TurboMind in the making: its tokens, its text, and what ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from vlcore.engines.base import EngineOutput, EngineRequest, FinishReason
from vlcore.engines.detokenizer import Detokenizer
from vlcore.engines.ends import Ends
from vlcore.engines.sequence import logprobs_of, to_host
from vlcore.errors import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Answer:
    """One of a request's answers.

    Args:
        request: what is continued.
        choice: which of its answers this is.
        ends: what ends the model's answers.
        tokenizer: decodes them.
        max_new_tokens: the longest answer, in tokens.
        emit: takes the pieces, or what went wrong; raises RuntimeError where nobody does.
    """

    def __init__(
        self,
        request: EngineRequest,
        choice: int,
        *,
        ends: Ends,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        emit: Callable[[EngineOutput | EngineError], None],
    ) -> None:
        config = request.config
        self.request = request
        self.choice = choice
        self.is_finished = False
        """Set when it ended or failed, or when nobody waits for it any more."""
        self.token_ids: list[int] = []
        self.forbidden_ids: set[int] = set()
        """Tokens that would complete a bad word if they came next."""
        stop_texts, self.end_ids = ends.of_request(request)
        self._max_new_tokens = max_new_tokens
        self._emit = emit
        self._detokenizer = Detokenizer(
            tokenizer, stop_texts, config.bad_words, skip_special_tokens=config.skip_special_tokens
        )

    @property
    def num_left(self) -> int:
        """Tokens that it may still have."""
        return self._max_new_tokens - len(self.token_ids)

    def accept(
        self,
        token_ids: Sequence[int],
        logits: Tensor | None = None,
        prompt_logits: Tensor | None = None,
    ) -> bool:
        """Take the next tokens and give out what text they make certain.

        Shapes:
            logits: [tokens, vocab], of which each was chosen.
            prompt_logits: [prompt's tokens, vocab], given out with the first token, if asked for.

        Returns:
            False where a token would complete a bad word: it and the rest were not taken.
        """
        for position, token_id in enumerate(token_ids):
            if self.is_finished:
                break
            if token_id not in self.end_ids and not self._detokenizer.allows(token_id):
                self.forbidden_ids.add(token_id)
                return False
            is_wanted = self.request.config.output_logits == "all" and not self.token_ids
            self._take(
                token_id,
                None if logits is None else to_host(logits[position].float()),
                to_host(prompt_logits.float()) if is_wanted and prompt_logits is not None else None,
            )
        return True

    def end(self) -> None:
        """End it where TurboMind stopped without giving the token that made it stop."""
        if not self.is_finished:
            text = self._detokenizer.finish()
            self._give(EngineOutput(text, (), "stop", self.choice))

    def fail(self, error: EngineError) -> None:
        """End it with an error."""
        if not self.is_finished:
            self.is_finished = True
            self._send(error.with_traceback(None))  # which would keep the tensors of its frames

    def _take(self, token_id: int, logits: Tensor | None, prompt_logits: Tensor | None) -> None:
        self.forbidden_ids.clear()
        if token_id in self.end_ids:
            text = self._detokenizer.finish()
            self._give(EngineOutput(text, (), "stop", self.choice, prompt_logits=prompt_logits))
            return
        self.token_ids.append(token_id)
        text = self._detokenizer.add(token_id)
        reason: FinishReason | None = None
        if self._detokenizer.stopped:
            reason = "stop"
        elif not self.num_left:
            text += self._detokenizer.finish()
            reason = "stop" if self._detokenizer.stopped else "length"
        config = self.request.config
        logprobs: tuple[dict[int, float], ...] = ()
        if config.logprobs is not None and logits is not None:
            logprobs = (logprobs_of(logits, token_id, config.logprobs),)
        self._give(
            EngineOutput(
                text,
                (token_id,),
                reason,
                self.choice,
                logprobs,
                logits[None] if config.output_logits is not None and logits is not None else None,
                prompt_logits,
            )
        )

    def _give(self, output: EngineOutput) -> None:
        if output.finish_reason is not None:  # never unset: it may have been cancelled meanwhile
            self.is_finished = True
        self._send(output)

    def _send(self, piece: EngineOutput | EngineError) -> None:
        try:
            self._emit(piece)
        except RuntimeError:  # the loop is gone, and with it whoever asked
            self.is_finished = True
