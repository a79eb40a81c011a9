"""TurboMind, lmdeploy's engine: token ids and image rows go in through its embedding injection.

lmdeploy runs on an event loop of its own, in a thread, so that nothing that it copies or waits for
holds up the callers' loops.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlcore._utils.event_loop import LoopThread
from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.turbomind.requests import InstancePool, RunningRequest, RunningSequence
from vlcore.engines.turbomind.self_test import run_self_test
from vlcore.engines.turbomind.support import embedding_name, lmdeploy_version
from vlcore.engines.turbomind.translation import check_options, to_turbomind, to_turbomind_prompt
from vlcore.errors import (
    EngineClosedError,
    EngineError,
    EngineUnavailableError,
    OptionError,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel


class TurbomindEngine(Engine):
    """Runs the text part of a checkpoint on TurboMind.

    Args:
        language_model: the text part.
        tokenizer: decodes answers.
        view: its text view, the directory that TurboMind reads.
        device: the CUDA device, unless ``config`` names devices.
        dtype: what it computes in, unless there is a ``config``.
        config: lmdeploy's ``TurbomindEngineConfig``, which is passed on as it is.
        self_test: see first whether image rows count as what they are.

    Raises:
        EngineUnavailableError: lmdeploy cannot be imported, TurboMind cannot start, or the
            self-test failed.
    """

    name = "turbomind"
    takes_rows_on_host = True  # it copies them to its device chunk by chunk, while it prefills

    def __init__(
        self,
        language_model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        view: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        config: Any = None,
        self_test: bool = True,
    ) -> None:
        self._lmdeploy = _import_lmdeploy()
        self.hidden_size = language_model.hidden_size
        self.vocab_size = int(language_model.transformers_config.vocab_size)
        self._tokenizer = tokenizer
        self._ends = StopConditions.of(language_model, tokenizer)
        settings = config or self._lmdeploy.TurbomindEngineConfig(
            dtype=str(dtype).removeprefix("torch."),
            devices=[torch.cuda.current_device() if device.index is None else device.index],
            session_len=language_model.context_length,
        )
        self._model = self._load(view, settings)
        self._settings = self._model.engine_config
        self._dtype: torch.dtype = getattr(torch, self._settings.dtype)
        self.context_length = min(self._model.session_len, language_model.context_length)
        if self.context_length == language_model.context_length:
            self.context_limit_reason = language_model.context_limit_reason
        self._instances = InstancePool(self._model.create_instance, self._settings.max_batch_size)
        self._runs: set[RunningRequest] = set()
        self._is_closed = False
        self._loop = LoopThread("vlcore-turbomind")
        if self_test:
            embedding = embedding_name(language_model.view_config["architectures"][0])
            try:
                self._loop.run(run_self_test(self, view, embedding))
            except BaseException as error:
                self._free()
                if isinstance(error, EngineError) and not isinstance(error, EngineUnavailableError):
                    raise EngineUnavailableError(
                        f"TurboMind started, and failed its first request: {error}"
                    ) from error
                raise

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        """Continue a prompt, piece by piece. Closing the iterator cancels the request."""
        self.check(request)
        prompt = await asyncio.to_thread(to_turbomind_prompt, request, self._dtype)
        max_new_tokens = min(
            request.config.max_new_tokens, self.context_length - len(prompt.token_ids)
        )
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[EngineOutput | EngineError] = asyncio.Queue()

        def emit(piece: EngineOutput | EngineError) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        runs = [
            RunningRequest(
                RunningSequence(
                    request,
                    choice,
                    ends=self._ends,
                    tokenizer=self._tokenizer,
                    max_new_tokens=max_new_tokens,
                    emit=emit,
                ),
                prompt,
                self._instances,
                self._options,
            )
            for choice in range(request.config.n)
        ]
        try:
            for run in runs:
                self._start(run)
            num_running = len(runs)
            while num_running:
                piece = await pieces.get()
                if isinstance(piece, EngineError):
                    raise piece
                num_running -= piece.finish_reason is not None
                yield piece
        finally:
            for run in runs:
                self._loop.call_soon(run.cancel)

    async def close(self) -> None:
        """Cancel what runs, and free the model."""
        self._is_closed = True
        for run in tuple(self._runs):
            self._loop.call_soon(run.close)
        # Each run leaves the set itself; no run is started from here on.
        while self._runs:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self._free()

    def stats(self) -> EngineStats:
        """Count the instances that are lent, and the answers that wait for one."""
        num_running = self._instances.num_lent
        return EngineStats(num_running, max(0, len(self._runs) - num_running))

    def check(self, request: EngineRequest) -> None:
        """Check a request against the model, and against what TurboMind can do."""
        super().check(request)
        _, end_ids = self._ends.of_request(request)
        check_options(request.config, end_ids)
        if request.config.output_logits == "all" and self._settings.enable_prefix_caching:
            raise OptionError(
                "output_logits='all' gives the logits of the whole prompt, which TurboMind does "
                "not compute with enable_prefix_caching: switch one off"
            )

    def _start(self, run: RunningRequest) -> None:
        if self._is_closed:
            raise EngineClosedError("the engine was closed")
        future = self._loop.submit(run.serve())
        self._runs.add(run)
        future.add_done_callback(lambda _: self._end(run))

    def _end(self, run: RunningRequest) -> None:
        run.close()  # where the loop was closed before it came to its end
        self._runs.discard(run)

    def _options(self, answer: RunningSequence) -> Any:
        in_vocabulary = range(self.vocab_size)
        return self._lmdeploy.GenerationConfig(
            **to_turbomind(
                answer.request.config,
                end_ids=answer.end_ids.intersection(in_vocabulary),
                eos_ids=self._ends.eos_ids.intersection(in_vocabulary),
                forbidden_ids=answer.forbidden_ids,
                max_new_tokens=1 if answer.forbidden_ids else answer.num_left,
                num_generated=len(answer.token_ids),
                choice=answer.choice,
            )
        )

    def _load(self, view: Path, settings: Any) -> Any:
        """Start TurboMind on a text view.

        Raises:
            EngineUnavailableError: it cannot.
        """
        from lmdeploy.turbomind import TurboMind

        try:
            return TurboMind.from_pretrained(str(view), engine_config=settings)
        except Exception as error:
            cause = error.with_traceback(None)  # which would keep what it allocated
        reason = f"{type(cause).__name__}: {cause}"
        hint = ""
        if isinstance(cause, torch.OutOfMemoryError) or "out of memory" in reason.lower():
            hint = (
                ". Free memory on the device, give TurboMind less of it "
                "(TurbomindEngineConfig(cache_max_entry_count=0.5)), or more devices (tp=2)"
            )
        raise EngineUnavailableError(
            f"TurboMind (lmdeploy {lmdeploy_version()}) cannot start on {view}: {reason}{hint}"
        ) from cause

    def _free(self) -> None:
        self._loop.close()
        self._instances.clear()
        if "_model" in self.__dict__:
            self._model.close()
            del self._model


def _import_lmdeploy() -> Any:
    """Import what holds lmdeploy's settings.

    Raises:
        EngineUnavailableError: lmdeploy or its extension module cannot be imported.
    """
    is_first = "lmdeploy" not in sys.modules
    levels = {handler: handler.level for handler in logging.root.handlers}
    try:
        from lmdeploy import messages, turbomind
    except Exception as error:
        raise EngineUnavailableError(
            f"lmdeploy {lmdeploy_version()} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    finally:
        for handler, level in levels.items():  # lmdeploy mutes all that were there before it
            handler.setLevel(level)
    if is_first:  # as its own pipeline does; it would log each request
        logging.getLogger("lmdeploy").setLevel(logging.WARNING)
        os.environ.setdefault("TM_LOG_LEVEL", "WARNING")
    if not turbomind.is_available():
        cause = getattr(turbomind, "_import_error", None)
        raise EngineUnavailableError(
            f"lmdeploy {lmdeploy_version()} cannot load TurboMind: {cause}: are CUDA 12's "
            "libraries (nvidia-cublas-cu12, nvidia-cuda-runtime-cu12, nvidia-nccl-cu12) there?"
        ) from cause
    return messages
