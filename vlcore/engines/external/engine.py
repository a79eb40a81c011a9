"""``ExternalEngine``: an engine of another library, on an event loop of its own.

The loop runs in a separate thread, so that the library's copies and waits do not block the event
loops of callers.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from vlcore._utils.event_loop import LoopMailboxes, LoopThread
from vlcore.engines.base import Engine, EngineOutput, EngineRequest
from vlcore.engines.external.prompt import HostPrompt, to_host_prompt
from vlcore.engines.external.request import ExternalRequest
from vlcore.engines.external.sequence import ExternalSequence
from vlcore.engines.stop_conditions import StopConditions
from vlcore.errors import EngineClosedError, EngineError, EngineUnavailableError, VlcoreError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel


class ExternalEngine(Engine):
    """Runs requests at another library, and assembles its tokens into answers.

    Args:
        language_model: the language model.
        tokenizer: decodes the answers.
    """

    library: ClassVar[str]
    """Name of the library in messages."""
    takes_rows_on_host = True

    def __init__(self, language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.hidden_size = language_model.hidden_size
        self.vocab_size = int(language_model.transformers_config.vocab_size)
        self._dtype = torch.float32
        """Dtype of the library's computation, which a subclass sets."""
        self._tokenizer = tokenizer
        self._stop_conditions = StopConditions.from_model(language_model, tokenizer)
        self._requests: set[ExternalRequest] = set()
        self._is_closed = False
        self._loop = LoopThread(f"vlcore-{self.name}")
        self._mailboxes = LoopMailboxes(self._loop)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        """Continue a prompt, chunk by chunk. Closing the iterator cancels the request."""
        self.check(request)
        await self.prepare(request.config)
        prompt = await asyncio.to_thread(to_host_prompt, request, self._dtype)
        max_new_tokens = min(
            request.config.max_new_tokens, self.context_length - len(prompt.token_ids)
        )
        chunks: asyncio.Queue[EngineOutput | VlcoreError] = asyncio.Queue()
        emit = self._mailboxes.sender(chunks.put_nowait)
        running = [
            self._make_request(
                ExternalSequence(
                    request,
                    choice,
                    stop_conditions=self._stop_conditions,
                    tokenizer=self._tokenizer,
                    max_new_tokens=max_new_tokens,
                    emit=emit,
                ),
                prompt,
            )
            for choice in range(request.config.num_distinct_answers)
        ]
        try:
            for running_request in running:
                self._start(running_request)
            num_running = len(running)
            while num_running:
                chunk = await chunks.get()
                if isinstance(chunk, VlcoreError):
                    raise chunk
                num_running -= chunk.finish_reason is not None
                for copy in chunk.for_each_answer(request.config):
                    yield copy
        finally:
            for running_request in running:
                self._loop.call_soon(running_request.cancel)

    async def close(self) -> None:
        """Cancel all requests, and free the model."""
        self._is_closed = True
        for request in tuple(self._requests):
            self._loop.call_soon(request.close)
        # Each request removes itself from the set, and no further one is started.
        while self._requests:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self._free()

    @abstractmethod
    def _make_request(self, sequence: ExternalSequence, prompt: HostPrompt) -> ExternalRequest:
        """Create the request of one answer, which is started later."""

    @abstractmethod
    def _free(self) -> None:
        """Free the model and close the loop. Idempotent."""

    def _limit_context(self, length: int, language_model: LanguageModel) -> None:
        """Set the context length to the library's or to the model's, whichever is smaller."""
        self.context_length = min(length, language_model.context_length)
        if self.context_length == language_model.context_length:
            self.context_limit_reason = language_model.context_limit_reason

    def _run_self_test(self, self_test: Coroutine[Any, Any, None]) -> None:
        """Run the self-test on the engine's event loop.

        Raises:
            EngineUnavailableError: the self-test failed.
        """
        try:
            self._loop.run(self_test)
        except EngineUnavailableError:
            raise
        except EngineError as error:
            raise EngineUnavailableError(
                f"{self.library} started, and failed its first request: {error}"
            ) from error

    def _start(self, request: ExternalRequest) -> None:
        if self._is_closed:
            raise EngineClosedError("the engine was closed")
        future = self._loop.submit(request.run())
        self._requests.add(request)
        future.add_done_callback(lambda _: self._end(request))

    def _end(self, request: ExternalRequest) -> None:
        request.close()  # has an effect only if the loop was closed before the request ended
        self._requests.discard(request)
