"""``Pipeline``: the synchronous and asynchronous interface of a loaded model."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from vlcore._utils.event_loop import LoopThread
from vlcore._utils.fork import ForkGuard
from vlcore.engines.base import Engine
from vlcore.engines.generation import GenerationConfig, as_generation_config
from vlcore.errors import EngineClosedError
from vlcore.inference.request_runner import RequestRunner
from vlcore.inference.response import Response, Session
from vlcore.inference.user_input import Prompt
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.vision.stats import EncoderStats

_T = TypeVar("_T")


class Pipeline:
    """A loaded model, created by :func:`pipeline`.

    Call it with a prompt, or a list of prompts, to generate responses. :meth:`stream_infer` streams
    them, :meth:`chat` continues a conversation, and the methods whose names begin with ``a`` are
    their asynchronous versions. All methods are thread-safe, and concurrent requests share batches.
    Use the pipeline as a context manager, or call :meth:`close`, to free the models.
    """

    def __init__(self, runner: RequestRunner) -> None:
        self._runner = runner
        self._loop = LoopThread("vlcore-pipeline")
        self._closed = False
        self._cleanup = _Cleanup(runner, self._loop)
        # Streams refer to the runner and not to the pipeline, which may be dropped before them.
        self._finalizer = weakref.finalize(runner, self._cleanup.run_in_thread)
        self._finalizer.atexit = False

    # -- synchronous

    def __call__(
        self,
        prompts: Prompt | Sequence[Any],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> Any:
        """Generate the response to a prompt, or to each prompt of a list.

        Args:
            prompts: A text, a pair of a text and an image, a video or a list of them in either
                order, OpenAI-style messages, or a list of such prompts.
            gen_config: Generation options; ``None`` for the defaults of :class:`GenerationConfig`.
            use_tqdm: Whether to show a progress bar for a list.

        Returns:
            A :class:`Response`. For a list, a list of them in the same order, where the response to
            a prompt that failed has ``finish_reason="error"`` and the exception in ``error``.

        Raises:
            VlcoreError: A single prompt failed, or an option is invalid.
        """
        self._check_open()
        config = as_generation_config(gen_config)
        return self._loop.run(self._runner.infer(prompts, config, shows_progress=use_tqdm))

    def stream_infer(
        self,
        prompts: Prompt | Sequence[Any],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Generator[Response]:
        """Generate responses like a call of the pipeline, as a stream.

        Yields:
            A :class:`Response` with the next chunk of the response to prompt ``index``.
        """
        self._check_open()
        config = as_generation_config(gen_config)
        return self._loop.iterate(self._runner.stream(prompts, config))

    def chat(
        self,
        prompt: Prompt,
        session: Session | None = None,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Session:
        """Generate the response to a prompt with the history of a session.

        The prompt and the response are appended to the session. After an error, the session is
        unchanged.

        Returns:
            The session, or a new one if none was given. Its ``response`` is the response.
        """
        self._check_open()
        config = as_generation_config(gen_config)
        return self._loop.run(self._runner.chat(prompt, session or Session(), config))

    def stream_chat(
        self,
        prompt: Prompt,
        session: Session,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Generator[Response]:
        """Generate a response like :meth:`chat`, as a stream."""
        self._check_open()
        config = as_generation_config(gen_config)
        return self._loop.iterate(self._runner.stream_chat(prompt, session, config))

    def close(self) -> None:
        """Cancel running requests, stop the threads and free the models.

        Raises:
            RuntimeError: The method is called on the pipeline's own event loop.
        """
        if self._closed:
            return
        self._loop.check_elsewhere()
        self._closed = True
        self._finalizer.detach()
        self._cleanup.run()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- asynchronous

    async def ainfer(
        self,
        prompts: Prompt | Sequence[Any],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> Any:
        """Generate responses like a call of the pipeline, asynchronously."""
        self._check_open()
        config = as_generation_config(gen_config)
        return await self._loop.wait(self._runner.infer(prompts, config, shows_progress=use_tqdm))

    def astream_infer(
        self,
        prompts: Prompt | Sequence[Any],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Response]:
        """Generate a stream like :meth:`stream_infer`, asynchronously."""
        self._check_open()
        config = as_generation_config(gen_config)
        return self._loop.aiterate(self._runner.stream(prompts, config))

    async def achat(
        self,
        prompt: Prompt,
        session: Session | None = None,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Session:
        """Generate a response like :meth:`chat`, asynchronously."""
        self._check_open()
        config = as_generation_config(gen_config)
        return await self._loop.wait(self._runner.chat(prompt, session or Session(), config))

    def astream_chat(
        self,
        prompt: Prompt,
        session: Session,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Response]:
        """Generate a stream like :meth:`stream_chat`, asynchronously."""
        self._check_open()
        config = as_generation_config(gen_config)
        return self._loop.aiterate(self._runner.stream_chat(prompt, session, config))

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the pipeline's own event loop, and wait for its result.

        On this loop, the asynchronous methods of the pipeline need no switch between threads for
        each token, which is why the server runs on it. A coroutine that blocks holds up all other
        callers.

        Raises:
            EngineClosedError: The pipeline was closed before or during the call.
            RuntimeError: The method is called on that event loop.
        """
        return self._loop.run(coroutine)

    async def aclose(self) -> None:
        """Close like :meth:`close`, without blocking the caller's event loop.

        Raises:
            RuntimeError: The method is called on the pipeline's own event loop.
        """
        self._loop.check_elsewhere()
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def template(self) -> ChatTemplate:
        """Chat template of the model."""
        return self._runner.template

    @property
    def engine(self) -> Engine:
        """Engine that runs the language model."""
        return self._runner.engine

    @property
    def image_options(self) -> frozenset[str]:
        """Names of the options that an image may have, such as ``detail``."""
        return self._runner.encoder.image_options

    def token_text(self, token_id: int) -> str:
        """Return the text of a token, with U+FFFD for an incomplete character."""
        return self._runner.tokenizer.token_text(token_id)

    def encoder_stats(self) -> EncoderStats:
        """Return the image encoder's statistics."""
        return self._runner.encoder.stats()

    def _check_open(self) -> None:
        self._loop.check_process()
        if self._closed:
            raise EngineClosedError("the pipeline was closed: create a new one")


class _Cleanup:
    """Frees the models and the event loop of a pipeline once: when it is closed, when it and its
    streams are garbage collected, or at exit.

    A thread that still computes while the interpreter exits would crash the process.
    """

    def __init__(self, runner: RequestRunner, loop: LoopThread) -> None:
        # Without a reference to the runner, whose garbage collection is the signal to run.
        self._engine = runner.engine
        self._encoder = runner.encoder
        self._loop = loop
        self._is_done = False
        self._fork_guard = ForkGuard("pipeline")
        atexit.register(self.run)

    def run(self) -> None:
        """Cancel running requests, free the models and stop the event loop."""
        if self._is_done:
            return
        self._is_done = True
        atexit.unregister(self.run)
        if self._fork_guard.is_child:  # the parent frees what it has
            return
        self._loop.run(self._close_stages())
        self._loop.close()

    def run_in_thread(self) -> None:
        """Run without waiting: the garbage collector may call this in a thread of the pipeline."""
        if not self._is_done and not self._fork_guard.is_child:
            threading.Thread(target=self.run, name="vlcore-free").start()

    async def _close_stages(self) -> None:
        await self._engine.close()
        await self._encoder.close()
