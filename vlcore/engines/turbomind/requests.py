"""Requests at TurboMind: instances, and the answers that they generate.

An instance serves one request at a time. The output of lmdeploy's generator is always read to its
end, so that the instance is free when it is used again; a request that is no longer needed is
cancelled first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import Any

from torch import Tensor

from vlcore.engines.external.prompt import HostPrompt
from vlcore.engines.external.request import ExternalRequest
from vlcore.engines.external.sequence import ExternalSequence
from vlcore.engines.turbomind.translation import MAX_IDS
from vlcore.errors import EngineError

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


class TurbomindRequest(ExternalRequest):
    """Generates one answer with TurboMind. All methods are called on one event loop.

    Args:
        sequence: receives the tokens of the answer.
        prompt: the prompt on the host.
        instances: the pool from which an instance is borrowed.
        make_options: creates lmdeploy's options for the rest of the answer.
    """

    library = "TurboMind"

    def __init__(
        self,
        sequence: ExternalSequence,
        prompt: HostPrompt,
        instances: InstancePool,
        make_options: Callable[[ExternalSequence], Any],
    ) -> None:
        super().__init__(sequence, prompt)
        self._instances = instances
        self._make_options = make_options
        self._active_session: tuple[Any, int] | None = None
        """The instance that generates at the moment, and its session id."""
        self._cancellation: asyncio.Task[None] | None = None

    def _stop(self) -> None:
        if self._active_session is not None:
            instance, session_id = self._active_session
            self._cancellation = asyncio.ensure_future(instance.async_cancel(session_id))
        else:
            super()._stop()

    async def _generate(self) -> None:
        async with self._instances.borrow() as instance:
            while not self.sequence.is_finished:
                await self._generate_rest(instance)

    async def _generate_rest(self, instance: Any) -> None:
        """Generate the rest of the answer, up to its end or to a token that is not allowed.

        Raises:
            EngineError: TurboMind failed, or every likely token would complete a banned string.
        """
        sequence, prompt = self.sequence, self.prompt
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
