"""The embedded engine: a transformers model fed with embeddings, in a thread of its own.

A request joins the running batch between two steps and leaves when it is done, stopped or
cancelled; what does not fit waits in order.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlcore._utils.device import free_bytes
from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.transformers.batch import Batch, Step
from vlcore.engines.transformers.quantization import WEIGHTS, quantize_weights
from vlcore.engines.transformers.sampler import DAMAGED, choose
from vlcore.engines.transformers.sequence import RunningSequence, SequenceGroup
from vlcore.engines.transformers.waiting_queue import WaitingQueue
from vlcore.errors import EngineClosedError, EngineError, EngineUnavailableError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel

logger = logging.getLogger(__name__)

_NOT_FINITE = (
    "the model computed NaN logits, or the options made NaN of them: try another dtype, or milder "
    "options"
)
CACHE_SHARE = 0.5
"""Of the memory that is free once the model is loaded."""


@dataclass(frozen=True, kw_only=True)
class TransformersEngineConfig:
    """Settings of the embedded engine.

    Raises:
        OptionError: a setting is out of range.
    """

    max_num_seqs: int = 16
    """How many answers run together at most; the rest waits in order."""
    session_len: int | None = None
    """The longest sequence of prompt and answer; ``None`` for the model's own context."""
    max_cached_tokens: int | None = None
    """Room for keys and values: answers that run together, times the longest that one of them may
    become. ``None`` for what half of the free memory holds."""
    max_prefill_tokens: int = 2048
    """Prompts that arrive together are computed together up to this many tokens, the padding
    included; a longer one is computed alone."""
    weights: str | None = None
    """``"int8"`` converts the linear layers' weights to 8 bits, which takes the extra
    ``vlcore[int8]``; ``None`` leaves them as they are."""

    def __post_init__(self) -> None:
        for name, least, is_optional in (
            ("max_num_seqs", 1, False),
            ("session_len", 2, True),
            ("max_cached_tokens", 2, True),
            ("max_prefill_tokens", 1, False),
        ):
            value = getattr(self, name)
            if value is None and is_optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise OptionError(f"{name} must be an integer of at least {least}; it is {value!r}")
        if self.weights is not None and self.weights not in WEIGHTS:
            known = ", ".join(map(repr, WEIGHTS))
            raise OptionError(f"weights must be {known} or None; it is {self.weights!r}")


class TransformersEngine(Engine):
    """Runs the text part of any checkpoint through transformers, on CPU or CUDA.

    Args:
        language_model: the text part.
        tokenizer: decodes answers.
        device: where it runs.
        dtype: of weights and embeddings.
        config: settings.
        progress: show a progress bar while weights load.

    Raises:
        EngineUnavailableError: the model's layers keep something else than keys and values, no
            memory is left for these, or torchao is not installed for 8-bit weights.
    """

    name = "transformers"

    def __init__(
        self,
        language_model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: torch.device,
        dtype: torch.dtype,
        config: TransformersEngineConfig | None = None,
        progress: bool = False,
    ) -> None:
        config = config or TransformersEngineConfig()
        self.hidden_size = language_model.hidden_size
        self._config = config
        self._tokenizer = tokenizer
        self._device = device
        self._model: PreTrainedModel = language_model.to_transformers(
            device, dtype, progress=progress
        )
        if config.weights is not None:
            quantize_weights(self._model, config.weights)
        self._batch = Batch(self._model, device, config.max_num_seqs)
        self.vocab_size = self._batch.vocab_size
        own_length = language_model.context_length
        self.context_length = min(config.session_len or own_length, own_length)
        self._limit_cache(language_model.checkpoint.name)
        if self.context_length == own_length:
            self.context_limit_reason = language_model.context_limit_reason
        self._ends = StopConditions.of(language_model, tokenizer)
        self._waiting = WaitingQueue()
        self._thread = threading.Thread(target=self._serve, name="vlcore-engine", daemon=True)
        self._thread.start()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        """Continue a prompt, piece by piece. Closing the iterator cancels the request."""
        self.check(request)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[EngineOutput | EngineError] = asyncio.Queue()

        def emit(piece: EngineOutput | EngineError) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop is gone, and with it whoever asked
                _cancel(answers)

        answers = self._answers(request, emit)
        self._waiting.join(answers)
        try:
            num_running = len(answers)
            while num_running:
                piece = await pieces.get()
                if isinstance(piece, EngineError):
                    raise piece
                num_running -= piece.finish_reason is not None
                yield piece
        finally:
            _cancel(answers)
            self._waiting.leave(answers)

    async def close(self) -> None:
        """Cancel what runs and waits, and free the model."""
        self._waiting.close()
        # Looked at rather than joined in an executor, which no longer starts threads at exit.
        while self._thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self.__dict__.pop("_model", None)
        self.__dict__.pop("_batch", None)

    def stats(self) -> EngineStats:
        """Count the rows of the running batch, and the answers that wait for one."""
        batch: Batch | None = self.__dict__.get("_batch")
        num_running = 0 if batch is None else len(batch.sequences)
        return EngineStats(num_running, self._waiting.num_answers())

    # -- the callers' side

    def _limit_cache(self, model_name: str) -> None:
        """Settle how many tokens are cached at most, and with it how long a sequence can be."""
        with torch.inference_mode():
            bytes_per_token = self._batch.measure_token()
        room = self._config.max_cached_tokens
        if room is None:
            room = int(free_bytes(self._device) * CACHE_SHARE) // bytes_per_token
            if room < 2:
                raise EngineUnavailableError(
                    f"no memory is left on {self._device} for the keys and values of "
                    f"{model_name}, {bytes_per_token} bytes a token: use a smaller dtype or a "
                    "larger device"
                )
            if room < self.context_length:
                logger.warning(
                    "%s can look at %d tokens; there is room for the keys and values of %d",
                    model_name,
                    self.context_length,
                    room,
                )
        room = min(room, self._config.max_num_seqs * self.context_length)
        self.context_length = min(self.context_length, room)
        self._max_cached_tokens = self._batch.max_cached_tokens = room

    def _answers(
        self, request: EngineRequest, emit: Callable[[EngineOutput | EngineError], None]
    ) -> SequenceGroup:
        """Make ready what a request asks for.

        Raises:
            OptionError: it can never run, or no token could come first.
        """
        num_answers, num_cached = request.config.n, self._max_cached_tokens
        longest = min(
            len(request.prompt.token_ids) + request.config.max_new_tokens, self.context_length
        )
        if num_answers > self._config.max_num_seqs or num_answers * longest > num_cached:
            raise OptionError(
                f"n={num_answers} answers of up to {longest} tokens, the prompt included, can "
                f"never run together: the engine runs {self._config.max_num_seqs} "
                f"(max_num_seqs) and caches {num_cached} tokens (max_cached_tokens). Lower n or "
                "max_new_tokens"
            )
        return tuple(
            RunningSequence(
                request,
                choice,
                ends=self._ends,
                tokenizer=self._tokenizer,
                max_length=self.context_length,
                vocab_size=self.vocab_size,
                device=self._device,
                emit=emit,
            )
            for choice in range(num_answers)
        )

    # -- the engine's thread

    def _serve(self) -> None:
        with torch.inference_mode():
            while self._waiting.wait(lambda: self._batch.sequences):
                try:
                    self._step()
                except Exception as error:
                    # Without its traceback, which would keep the tensors of its frames.
                    _fail(self._batch.clear(), "the model failed", error.with_traceback(None))
        for sequence in [*self._batch.clear(), *chain(*self._waiting.take(lambda _: True))]:
            sequence.fail(EngineClosedError("the engine was closed while it served the request"))

    def _step(self) -> None:
        self._batch.keep(_is_running)
        if arrived := self._waiting.take(self._go_together):
            self._prefill(arrived)
            self._batch.keep(_is_running)  # one token may have been enough
        if self._batch.sequences:
            token_ids = self._advance(self._batch.decode())
            if token_ids is not None:
                self._batch.go_on_from(token_ids)

    def _go_together(self, requests: list[SequenceGroup]) -> bool:
        """Whether the batch has room for them, and one forward for their prompts."""
        if not self._batch.has_room(list(chain.from_iterable(requests))):
            return False
        longest = max(request[0].num_tokens for request in requests)
        fits = longest * len(requests) <= self._config.max_prefill_tokens
        are_plain = not any(request[0].wants_prompt_logits for request in requests)
        return len(requests) == 1 or (fits and are_plain)

    def _prefill(self, requests: list[SequenceGroup]) -> None:
        """Compute prompts together, or one by one where that fails, so that each fails alone."""
        try:
            step = self._batch.join(requests)
        except Exception as error:
            failure = error.with_traceback(None)
        else:
            self._advance(step)
            return
        if len(requests) == 1:
            _fail(requests[0], "the model failed", failure)
            return
        for request in requests:
            self._prefill([request])

    def _advance(self, step: Step) -> Tensor | None:
        """Choose the next token of each sequence and hand it over.

        Shapes:
            result: [sequences] int64, or nothing where some sequence did not take its token.
        """
        try:
            chosen = choose(step.logits, [sequence.sampler for sequence in step.sequences])
            token_ids = chosen.tolist()  # waits for the device
        except Exception as error:
            _fail(step.sequences, "the model failed", error.with_traceback(None))
            return None
        taken = True
        for sequence, token_id, logits in zip(step.sequences, token_ids, step.logits, strict=True):
            if token_id == DAMAGED:
                self._batch.forget(sequence)
                sequence.fail(EngineError(_NOT_FINITE))
            elif _is_running(sequence):
                try:
                    sequence.accept(token_id, logits, step.prompt_logits)
                except EngineError as error:
                    sequence.fail(error)
                except Exception as error:
                    _fail([sequence], "the answer could not go on", error)
            taken = taken and sequence.last_id == token_id
        return chosen if taken else None


def _is_running(sequence: RunningSequence) -> bool:
    return not sequence.is_finished


def _cancel(answers: Iterable[RunningSequence]) -> None:
    for sequence in answers:
        sequence.is_finished = True


def _fail(sequences: Iterable[RunningSequence], what: str, cause: Exception) -> None:
    cause = cause.with_traceback(None)  # which would keep the tensors of its frames
    for sequence in sequences:
        error = EngineError(f"{what}: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        sequence.fail(error)
