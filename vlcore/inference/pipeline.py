"""The public face: loads a model, and answers synchronous and asynchronous callers."""

from __future__ import annotations

import asyncio
import atexit
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from vlcore._utils.event_loop import LoopThread
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
    """A model ready to answer. Thread-safe; made by :func:`pipeline`."""

    def __init__(self, road: RequestRunner) -> None:
        self._road = road
        self._loop = LoopThread("vlcore-pipeline")
        self._closed = False
        # A thread that still computes while the interpreter exits would crash it.
        self._at_exit = partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)
        self._finalizer = weakref.finalize(self, _free_in_thread, road, self._loop, self._at_exit)
        self._finalizer.atexit = False

    # -- synchronous

    def __call__(
        self,
        prompts: Prompt | Sequence[Any],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> Any:
        """Answer a prompt, or each of a list of prompts.

        Args:
            prompts: a text, ``(text, image or images)`` in either order, OpenAI-style messages, or
                a list of any of these.
            gen_config: how answers are generated.
            use_tqdm: show a progress bar over a list.

        Returns:
            A :class:`Response`; for a list, a list of them in order, in which a prompt that
            cannot be answered has ``finish_reason="error"`` and the exception in ``error``.

        Raises:
            VlcoreError: a single prompt cannot be answered, or an option is wrong.
        """
        self._check_open()
        config = as_generation_config(gen_config)
        return self._loop.run(self._road.infer(prompts, config, shows_progress=use_tqdm))

    def stream_infer(
        self,
        prompts: Prompt | Sequence[Any],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Generator[Response]:
        """Answer like a call of the pipeline, piece by piece.

        Each :class:`Response` holds the next piece of the answer to prompt ``index``.
        """
        self._check_open()
        config = as_generation_config(gen_config)
        return self._keep(self._loop.iterate(self._road.stream(prompts, config)))

    def chat(
        self,
        prompt: Prompt,
        session: Session | None = None,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Session:
        """Answer with the history of a session, which grows by question and answer.

        Returns:
            The session, a new one where none was given; its ``response`` is the answer. After an
            error the session is as it was.
        """
        self._check_open()
        config = as_generation_config(gen_config)
        return self._loop.run(self._road.chat(prompt, session or Session(), config))

    def stream_chat(
        self,
        prompt: Prompt,
        session: Session,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Generator[Response]:
        """Answer like :meth:`chat`, piece by piece."""
        self._check_open()
        config = as_generation_config(gen_config)
        return self._keep(self._loop.iterate(self._road.stream_chat(prompt, session, config)))

    def close(self) -> None:
        """Cancel what runs, and free the threads and the models.

        Raises:
            RuntimeError: called on the pipeline's own loop, which would wait for itself.
        """
        if self._closed:
            return
        self._loop.check_elsewhere()
        self._closed = True
        self._finalizer.detach()
        _free(self._road, self._loop, self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- asynchronous twins

    async def ainfer(
        self,
        prompts: Prompt | Sequence[Any],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> Any:
        """Await what a call of the pipeline gives."""
        self._check_open()
        config = as_generation_config(gen_config)
        return await self._loop.wait(self._road.infer(prompts, config, shows_progress=use_tqdm))

    def astream_infer(
        self,
        prompts: Prompt | Sequence[Any],
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Response]:
        """Iterate asynchronously over what :meth:`stream_infer` gives."""
        self._check_open()
        config = as_generation_config(gen_config)
        return self._akeep(self._loop.aiterate(self._road.stream(prompts, config)))

    async def achat(
        self,
        prompt: Prompt,
        session: Session | None = None,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> Session:
        """Await what :meth:`chat` gives."""
        self._check_open()
        config = as_generation_config(gen_config)
        return await self._loop.wait(self._road.chat(prompt, session or Session(), config))

    def astream_chat(
        self,
        prompt: Prompt,
        session: Session,
        gen_config: GenerationConfig | Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Response]:
        """Iterate asynchronously over what :meth:`stream_chat` gives."""
        self._check_open()
        config = as_generation_config(gen_config)
        return self._akeep(self._loop.aiterate(self._road.stream_chat(prompt, session, config)))

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the pipeline's own event loop, and wait for its end.

        What it awaits and iterates of this pipeline comes without a change of threads, which a
        server saves at every token. It must not block, or every caller waits.

        Raises:
            EngineClosedError: the pipeline was closed, before or meanwhile.
            RuntimeError: called on that loop.
        """
        return self._loop.run(coroutine)

    async def aclose(self) -> None:
        """Close without blocking the caller's event loop, which must not be the pipeline's own."""
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
        """What writes the prompts."""
        return self._road.template

    @property
    def engine(self) -> Engine:
        """What continues them."""
        return self._road.engine

    @property
    def image_options(self) -> frozenset[str]:
        """What may be asked of a picture, such as ``detail``."""
        return self._road.encoder.vision_model.image_options

    def token_text(self, token_id: int) -> str:
        """Write one token as text; one that is a part of a character has U+FFFD."""
        return self._road.tokenizer.token_text(token_id)

    def encoder_stats(self) -> EncoderStats:
        """Count what the image encoder did so far."""
        return self._road.encoder.stats()

    def _keep(self, pieces: Generator[Response]) -> Generator[Response]:
        """Keep the pipeline alive as long as one of its streams."""
        yield from pieces

    async def _akeep(self, pieces: AsyncGenerator[Response]) -> AsyncGenerator[Response]:
        """Keep the pipeline alive as long as one of its asynchronous streams."""
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the pipeline was closed: make a new one")


def _close_if_alive(reference: weakref.ref[Pipeline]) -> None:
    pipe = reference()
    if pipe is not None:
        pipe.close()


def _free(road: RequestRunner, loop: LoopThread, at_exit: Callable[[], None]) -> None:
    atexit.unregister(at_exit)
    loop.run(road.close())
    loop.close()


def _free_in_thread(road: RequestRunner, loop: LoopThread, at_exit: Callable[[], None]) -> None:
    """Free a pipeline that was dropped; the garbage collector may run in a thread to be freed."""
    threading.Thread(target=_free, args=(road, loop, at_exit), name="vlcore-free").start()
