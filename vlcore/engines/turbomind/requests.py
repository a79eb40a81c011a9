"""Requests at TurboMind: asked of an instance, read to their end, cancelled.

An instance serves one request at a time. What lmdeploy generates is always read to its end, so that
an instance is free when it is lent again; a request that nobody waits for is cancelled first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vlcore.engines.base import EngineOutput, EngineRequest, FinishReason
from vlcore.engines.detokenizer import Detokenizer
from vlcore.engines.logprobs import logprobs_of, to_host
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.turbomind.translation import MAX_IDS, TurbomindPrompt
from vlcore.errors import EngineClosedError, EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WHY = {
    "SESSION_NOT_EXIST": "it found the prompt's ranges of image rows invalid",
    "SESSION_REPEAT": "another request had the same number",
    "INPUT_LENGTH_ERROR": "the prompt is longer than its session_len",
    "PREFIX_CACHE_CONFLICT": "its prefix cache cannot give the logits of a prompt",
    "OUT_OF_MEMORY": (
        "its cache of keys and values has no room: raise cache_max_entry_count, or lower "
        "session_len"
    ),
    "CANCEL": "it cancelled the request by itself",
}


class InstancePool:
    """TurboMind's instances, made as they are needed.

    Args:
        create: makes one.
        limit: how many there are at most; who comes then waits in order.
    """

    def __init__(self, create: Callable[[], Any], limit: int) -> None:
        self._create = create
        self._idle: list[Any] = []
        self._places = asyncio.Semaphore(limit)
        self.num_lent = 0
        self._session_ids = count(1)

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Any]:
        """Wait for an instance; after an exception it is not lent again."""
        async with self._places:
            self.num_lent += 1
            try:
                instance = self._idle.pop() if self._idle else self._create()
                yield instance
                self._idle.append(instance)
            finally:
                self.num_lent -= 1

    def next_session_id(self) -> int:
        """A number that no other request has."""
        return next(self._session_ids)

    def clear(self) -> None:
        """Let go of all."""
        self._idle.clear()


class RunningRequest:
    """Gets one answer out of TurboMind; everything here happens on one event loop.

    Args:
        answer: takes the tokens.
        prompt: what is continued.
        instances: one of them is asked.
        options: lmdeploy's options for what is left of the answer.
    """

    def __init__(
        self,
        answer: RunningSequence,
        prompt: TurbomindPrompt,
        instances: InstancePool,
        options: Callable[[RunningSequence], Any],
    ) -> None:
        self.answer = answer
        self._prompt = prompt
        self._instances = instances
        self._options = options
        self._task: asyncio.Task[None] | None = None
        self._asked: tuple[Any, int] | None = None
        self._cancelling: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Ask until the answer is whole; what goes wrong goes to the answer."""
        if self.answer.is_finished:
            return
        self._task = asyncio.current_task()
        try:
            async with self._instances.borrow() as instance:
                while not self.answer.is_finished:
                    await self._ask(instance)
        except asyncio.CancelledError:  # while it waited for an instance
            pass
        except EngineError as error:
            self.answer.fail(error)
        except Exception as error:
            cause = error.with_traceback(None)  # which would keep the tensors of its frames
            failure = EngineError(f"TurboMind failed: {type(cause).__name__}: {cause}")
            failure.__cause__ = cause
            self.answer.fail(failure)

    def close(self) -> None:
        """Stop, and tell whoever waits that the engine was closed."""
        if not self.answer.is_finished:
            self.answer.fail(EngineClosedError("the engine was closed while it served the request"))
            self._stop()

    def cancel(self) -> None:
        """Stop, wherever it is, because nobody waits any more."""
        if not self.answer.is_finished:  # else it comes to its end by itself
            self.answer.is_finished = True
            self._stop()

    def _stop(self) -> None:
        if self._asked is not None:
            instance, session_id = self._asked
            self._cancelling = asyncio.ensure_future(instance.async_cancel(session_id))
        elif self._task is not None:
            self._task.cancel()

    async def _ask(self, instance: Any) -> None:
        """Ask for what is left of the answer, and read what comes to its end.

        Raises:
            EngineError: TurboMind failed, or bad words leave no likely token.
        """
        answer, prompt = self.answer, self._prompt
        if len(answer.forbidden_ids | set(answer.request.config.bad_token_ids)) > MAX_IDS:
            raise EngineError(
                f"bad_words leave none of the {len(answer.forbidden_ids)} likeliest tokens: the "
                "answer cannot go on without one of them"
            )
        token_ids = [*prompt.token_ids, *answer.token_ids]
        options = self._options(answer)
        last = len(answer.token_ids) + options.max_new_tokens
        session_id = self._instances.next_session_id()
        outputs = instance.async_stream_infer(
            session_id,
            token_ids,
            input_embeddings=list(prompt.embeddings),
            input_embedding_ranges=[list(positions) for positions in prompt.ranges],
            gen_config=options,
            stream_output=True,
        )
        refused = False
        self._asked = (instance, session_id)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    if refused or answer.is_finished:  # it was cancelled, and this is what is left
                        continue
                    status = output.status.name
                    if status not in ("SUCCESS", "FINISH"):
                        raise EngineError(f"TurboMind failed: {_WHY.get(status, status)}")
                    refused = not answer.accept(
                        output.token_ids, *_logits_of(output, len(token_ids))
                    )
                    if status == "SUCCESS" and (refused or answer.is_finished):
                        await instance.async_cancel(session_id)
                    if status == "FINISH" and not refused and len(answer.token_ids) < last:
                        answer.end()
        finally:
            self._asked = None
            if self._cancelling is not None:  # while the instance is still this run's own
                await self._cancelling


def _logits_of(output: Any, num_prompt_tokens: int) -> tuple[Tensor | None, Tensor | None]:
    """Logits of the new tokens, and of the tokens before all that was generated.

    lmdeploy gives those of all positions so far that were asked for.
    """
    logits: Tensor | None = output.logits
    if logits is None:
        return None, None
    return logits[len(logits) - len(output.token_ids) :], logits[:num_prompt_tokens]


class RunningSequence:
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
        ends: StopConditions,
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
