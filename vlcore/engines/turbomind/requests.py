"""Requests at TurboMind: instances, and the answers that they generate.

An instance serves one request at a time. The output of lmdeploy's generator is always read to its
end, so that the instance is free when it is used again; a request that is no longer needed is
cancelled first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vlcore.engines.base import EngineRequest
from vlcore.engines.logprobs import copy_to_host
from vlcore.engines.sequence import Emit, RunningSequence
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.turbomind.translation import MAX_IDS, TurbomindPrompt
from vlcore.errors import EngineClosedError, EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STATUS_REASONS = {
    "SESSION_NOT_EXIST": "it found the prompt's ranges of image embeddings invalid",
    "SESSION_REPEAT": "another request had the same session id",
    "INPUT_LENGTH_ERROR": "the prompt is longer than its session_len",
    "PREFIX_CACHE_CONFLICT": "with its prefix cache it cannot return the logits of a prompt",
    "OUT_OF_MEMORY": (
        "its KV cache is too small: raise cache_max_entry_count, or lower session_len"
    ),
    "CANCEL": "it cancelled the request by itself",
}


class InstancePool:
    """A pool of TurboMind's instances, which are created when they are needed.

    Args:
        create: creates an instance.
        max_size: maximum number of instances; further borrowers wait in order.
    """

    def __init__(self, create: Callable[[], Any], max_size: int) -> None:
        self._create = create
        self._idle: list[Any] = []
        self._permits = asyncio.Semaphore(max_size)
        self.num_in_use = 0
        self._session_ids = count(1)

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Any]:
        """Wait for an instance, and return it at the end; after an exception it is discarded."""
        async with self._permits:
            self.num_in_use += 1
            try:
                instance = self._idle.pop() if self._idle else self._create()
                yield instance
                self._idle.append(instance)
            finally:
                self.num_in_use -= 1

    def next_session_id(self) -> int:
        """Return a session id that no other request has."""
        return next(self._session_ids)

    def clear(self) -> None:
        """Discard all idle instances."""
        self._idle.clear()


class TurbomindSequence(RunningSequence):
    """One of a request's answers at TurboMind, which samples its tokens by itself."""

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

    def accept(
        self,
        token_ids: Sequence[int],
        logits: Tensor | None = None,
        prompt_logits: Tensor | None = None,
    ) -> bool:
        """Add the next tokens to the answer, and emit the text that is final with them.

        Shapes:
            logits: [tokens, vocab], from which the tokens were chosen.
            prompt_logits: [prompt tokens, vocab], emitted with the first token, if requested.

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
            )
        return True

    def end(self) -> None:
        """End the answer where TurboMind stopped and did not return the end token."""
        if not self.is_finished:
            self._end()


class RunningRequest:
    """Generates one answer with TurboMind. All methods are called on one event loop.

    Args:
        sequence: receives the tokens of the answer.
        prompt: the prompt in TurboMind's form.
        instances: the pool from which an instance is borrowed.
        make_options: creates lmdeploy's options for the rest of the answer.
    """

    def __init__(
        self,
        sequence: TurbomindSequence,
        prompt: TurbomindPrompt,
        instances: InstancePool,
        make_options: Callable[[TurbomindSequence], Any],
    ) -> None:
        self.sequence = sequence
        self._prompt = prompt
        self._instances = instances
        self._make_options = make_options
        self._task: asyncio.Task[None] | None = None
        self._active_session: tuple[Any, int] | None = None
        """The instance that generates at the moment, and its session id."""
        self._cancellation: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Generate until the answer is complete; errors are emitted by the sequence."""
        if self.sequence.is_finished:
            return
        self._task = asyncio.current_task()
        try:
            async with self._instances.borrow() as instance:
                while not self.sequence.is_finished:
                    await self._generate(instance)
        except asyncio.CancelledError:  # while it waited for an instance
            pass
        except EngineError as error:
            self.sequence.fail(error)
        except Exception as error:
            cause = error.with_traceback(None)  # a traceback would keep tensors alive
            failure = EngineError(f"TurboMind failed: {type(cause).__name__}: {cause}")
            failure.__cause__ = cause
            self.sequence.fail(failure)

    def close(self) -> None:
        """Stop, and fail the answer because the engine was closed."""
        if not self.sequence.is_finished:
            self.sequence.fail(
                EngineClosedError("the engine was closed while it served the request")
            )
            self._stop()

    def cancel(self) -> None:
        """Stop, because the caller no longer waits for the answer."""
        if not self.sequence.is_finished:  # otherwise it ends by itself
            self.sequence.is_finished = True
            self._stop()

    def _stop(self) -> None:
        if self._active_session is not None:
            instance, session_id = self._active_session
            self._cancellation = asyncio.ensure_future(instance.async_cancel(session_id))
        elif self._task is not None:
            self._task.cancel()

    async def _generate(self, instance: Any) -> None:
        """Generate the rest of the answer, up to its end or to a token that is not allowed.

        Raises:
            EngineError: TurboMind failed, or every likely token would complete a banned string.
        """
        sequence, prompt = self.sequence, self._prompt
        config = sequence.request.config
        if len(sequence.banned_token_ids | set(config.bad_token_ids)) > MAX_IDS:
            raise EngineError(
                f"bad_words exclude all of the {len(sequence.banned_token_ids)} most likely next "
                "tokens, so the answer cannot be continued: use fewer or longer bad_words"
            )
        token_ids = [*prompt.token_ids, *sequence.token_ids]
        options = self._make_options(sequence)
        max_num_tokens = len(sequence.token_ids) + options.max_new_tokens
        session_id = self._instances.next_session_id()
        outputs = instance.async_stream_infer(
            session_id,
            token_ids,
            input_embeddings=list(prompt.embeddings),
            input_embedding_ranges=[list(positions) for positions in prompt.ranges],
            gen_config=options,
            stream_output=True,
        )
        is_rejected = False
        self._active_session = (instance, session_id)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    if is_rejected or sequence.is_finished:  # cancelled: read what is left
                        continue
                    status = output.status.name
                    if status not in ("SUCCESS", "FINISH"):
                        reason = _STATUS_REASONS.get(status, status)
                        raise EngineError(f"TurboMind failed: {reason}")
                    is_rejected = not sequence.accept(
                        output.token_ids, *_split_logits(output, len(token_ids))
                    )
                    if status == "SUCCESS" and (is_rejected or sequence.is_finished):
                        await instance.async_cancel(session_id)
                    is_cut_short = len(sequence.token_ids) < max_num_tokens
                    if status == "FINISH" and not is_rejected and is_cut_short:
                        sequence.end()
        finally:
            self._active_session = None
            if self._cancellation is not None:  # before the instance is returned to the pool
                await self._cancellation


def _split_logits(output: Any, num_prompt_tokens: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the logits of the new tokens, and those of the tokens before the generated ones.

    lmdeploy returns the logits of all requested positions so far.
    """
    logits: Tensor | None = output.logits
    if logits is None:
        return None, None
    return logits[len(logits) - len(output.token_ids) :], logits[:num_prompt_tokens]
