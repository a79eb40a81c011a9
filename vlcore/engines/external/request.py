"""``ExternalRequest``: one answer while another library generates it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import ClassVar

from vlcore.engines.external.prompt import HostPrompt
from vlcore.engines.external.sequence import ExternalSequence
from vlcore.errors import EngineClosedError, EngineError


class ExternalRequest(ABC):
    """Generates one answer. All methods are called on one event loop.

    Args:
        sequence: receives the tokens of the answer.
        prompt: the prompt on the host.
    """

    library: ClassVar[str]
    """Name of the library in messages."""

    def __init__(self, sequence: ExternalSequence, prompt: HostPrompt) -> None:
        self.sequence = sequence
        self.prompt = prompt
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Generate until the answer is complete; errors are emitted by the sequence."""
        if self.sequence.is_finished:
            return
        self._task = asyncio.current_task()
        try:
            await self._generate()
        except asyncio.CancelledError:
            pass
        except EngineError as error:
            self.sequence.fail(error)
        except Exception as error:
            cause = error.with_traceback(None)  # a traceback would keep tensors alive
            failure = EngineError(f"{self.library} failed: {type(cause).__name__}: {cause}")
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

    @abstractmethod
    async def _generate(self) -> None:
        """Generate until the sequence is finished.

        Raises:
            EngineError: the library failed, or every likely token would complete a banned string.
        """

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
