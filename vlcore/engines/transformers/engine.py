"""The embedded engine: a transformers model with continuous batching, in its own thread.

Requests are added to the running batch between two steps, and removed when they are finished or
cancelled. Those for which there is no room wait in the order of arrival. A long prompt is computed
in chunks, between steps.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sized
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlcore._utils.device import free_bytes
from vlcore._utils.event_loop import LoopMailboxes
from vlcore._utils.executor import DaemonExecutor
from vlcore._utils.resources import limit_torch_threads, num_cpus
from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.engines.generation import GenerationConfig
from vlcore.engines.sequence import Emit
from vlcore.engines.stop_conditions import StopConditions
from vlcore.engines.transformers.batch import Batch, Step
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.grammars.compiler import GrammarCompiler
from vlcore.engines.transformers.grammars.matcher import GrammarMatcher
from vlcore.engines.transformers.prefill_scheduler import PrefillScheduler
from vlcore.engines.transformers.prefix_key import PrefixKey
from vlcore.engines.transformers.prompt_chunk import PromptChunk
from vlcore.engines.transformers.quantization import quantize_weights
from vlcore.engines.transformers.sampler import INVALID_TOKEN_ID, choose_tokens
from vlcore.engines.transformers.sequence import SequenceGroup, TransformersSequence
from vlcore.engines.transformers.waiting_queue import WaitingQueue
from vlcore.engines.transformers.weight_packing import pack_weights
from vlcore.errors import (
    EngineClosedError,
    EngineError,
    EngineUnavailableError,
    OptionError,
    VlcoreError,
)
from vlcore.language.features import FEATURES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 5.0
"""Time to wait for a mask of a grammar when the engine is closed."""
CACHE_SHARE = 0.5
"""Share of the free memory, after the model is loaded, that is used for the KV cache."""


class TransformersEngine(Engine):
    """Runs the language model of any checkpoint with transformers, on a CPU or CUDA device.

    Args:
        language_model: the language model to load.
        tokenizer: decodes the answers.
        device: device of the model.
        dtype: dtype of the weights and embeddings.
        config: settings of the engine.
        progress: show a progress bar while the weights are loaded.

    Raises:
        EngineUnavailableError: the type of some layers is not supported, there is no memory
            left for the KV cache, ``weights`` requires torchao and it is not installed, or
            ``compile`` is set and the step cannot be compiled.
    """

    name = "transformers"
    supports_grammars = True
    offers = frozenset(FEATURES)

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
        self._row_width = language_model.row_width
        self._config = config
        self._tokenizer = tokenizer
        self._device = device
        if device.type == "cpu":
            limit_torch_threads()
        self._model: PreTrainedModel = language_model.to_transformers(
            device, dtype, progress=progress
        )
        if config.weights is not None:
            quantize_weights(self._model, config.weights)
        if config.pack_weights and device.type == "cpu":
            expects_batches = config.compile and config.max_num_seqs > 1
            pack_weights(self._model, expects_batches=expects_batches)
        self._batch = Batch(self._model, device, config.max_num_seqs)
        self._has_prefix_caching = config.prefix_caching and not self._batch.needs_whole_prompts
        self._running: Sized = self._batch.sequences  # remains readable after the batch is freed
        self._is_closed = False
        self.vocab_size = self._batch.vocab_size
        own_length = language_model.context_length
        self.context_length = min(config.session_len or own_length, own_length)
        with torch.inference_mode():
            groups = "attention_groups" in language_model.requires
            self._batch.check(has_attention_groups=groups)
        self._set_cache_size(language_model.checkpoint.name)
        if self.context_length == own_length:
            self.context_limit_reason = language_model.context_limit_reason
        if config.compile:
            with torch.inference_mode():
                self._batch.compile()
        self._stop_conditions = StopConditions.from_model(language_model, tokenizer)
        self._grammars = GrammarCompiler(
            tokenizer, self.vocab_size, self._stop_conditions.eos_token_ids
        )
        self._mask_executor = DaemonExecutor(min(4, num_cpus()), "vlcore-masks")
        self._waiting = WaitingQueue()
        self._scheduler = PrefillScheduler(self._waiting, self._batch, config.max_prefill_tokens)
        self._counts = Counter[str]()
        self._mailboxes = LoopMailboxes()
        self._thread = threading.Thread(target=self._run, name="vlcore-engine", daemon=True)
        self._thread.start()

    @property
    def row_width(self) -> int:
        """Width of an image's embedding; see ``LanguageModel.row_width``."""
        return self._row_width

    async def prepare(self, config: GenerationConfig) -> None:
        """Check a request's options, and compile its grammar."""
        await super().prepare(config)
        if config.grammar is not None:
            await self._grammars.compile(config.grammar)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        """Continue a prompt, chunk by chunk. Closing the iterator cancels the request."""
        self.check(request)
        grammar: GrammarMatcher | None = None
        if request.config.grammar is not None:
            grammar = await self._grammars.compile(request.config.grammar)
        chunks: asyncio.Queue[EngineOutput | VlcoreError] = asyncio.Queue()
        emit = self._mailboxes.sender(chunks.put_nowait)
        group = self._make_group(request, grammar, emit)
        self._waiting.add(group)
        try:
            num_running = len(group)
            while num_running:
                chunk = await chunks.get()
                if isinstance(chunk, VlcoreError):
                    raise chunk
                num_running -= chunk.finish_reason is not None
                for copy in chunk.for_each_answer(request.config):
                    yield copy
        finally:
            for sequence in group:
                sequence.is_finished = True
            self._waiting.discard(group)

    async def close(self) -> None:
        """Cancel all requests, and free the model."""
        self._waiting.close()
        await self._grammars.close()
        # Polled, because an executor that could join the thread starts no threads at exit.
        while self._thread.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await self._mask_executor.stop(_STOP_TIMEOUT_S)
        if not self._is_closed:
            self._is_closed = True
            del self._model, self._batch, self._scheduler

    def stats(self) -> EngineStats:
        """Count the sequences in the running batch and those that wait, and prompt tokens."""
        num_waiting = self._waiting.num_sequences() + self._counts["partial"]
        return EngineStats(
            len(self._running),
            num_waiting,
            num_prompt_tokens=self._counts["prompt"],
            num_cached_tokens=self._counts["cached"],
            num_kept_tokens=self._counts["kept"],
        )

    # -- called from the threads of callers

    def _set_cache_size(self, model_name: str) -> None:
        """Set the maximum number of cached tokens, and limit the context length to it."""
        bytes_per_token = self._batch.bytes_per_token
        max_cached_tokens = self._config.max_cached_tokens
        if max_cached_tokens is None:
            num_bytes = int(free_bytes(self._device) * CACHE_SHARE)
            num_bytes -= self._batch.bytes_per_sequence * self._config.max_num_seqs
            max_cached_tokens = max(0, num_bytes) // max(1, bytes_per_token)
            if max_cached_tokens < 2:
                raise EngineUnavailableError(
                    f"no memory is left on {self._device} for the keys and values of "
                    f"{model_name}, which take {bytes_per_token} bytes per token: use a smaller "
                    "dtype or a device with more memory"
                )
            if max_cached_tokens < self.context_length:
                logger.warning(
                    "the context length of %s is %d tokens; there is memory for the keys and "
                    "values of %d",
                    model_name,
                    self.context_length,
                    max_cached_tokens,
                )
        max_cached_tokens = min(max_cached_tokens, self._config.max_num_seqs * self.context_length)
        self.context_length = min(self.context_length, max_cached_tokens)
        self._max_cached_tokens = self._batch.memory.max_cached_tokens = max_cached_tokens

    def _make_group(
        self, request: EngineRequest, grammar: GrammarMatcher | None, emit: Emit
    ) -> SequenceGroup:
        """Create the sequences of a request.

        Raises:
            OptionError: the sequences could never run together, or the options allow no token as
                the first one.
        """
        num_answers, num_cached = request.config.num_distinct_answers, self._max_cached_tokens
        longest = min(
            len(request.prompt.token_ids) + request.config.max_new_tokens, self.context_length
        )
        if num_answers > self._config.max_num_seqs or num_answers * longest > num_cached:
            raise OptionError(
                f"n={num_answers} answers of up to {longest} tokens, including the prompt, can "
                f"never run together: the engine runs up to {self._config.max_num_seqs} answers "
                f"(max_num_seqs) and caches up to {num_cached} tokens (max_cached_tokens). Lower n "
                "or max_new_tokens"
            )
        prefix_key = PrefixKey(request) if self._has_prefix_caching else None
        return tuple(
            TransformersSequence(
                request,
                choice,
                stop_conditions=self._stop_conditions,
                tokenizer=self._tokenizer,
                max_length=self.context_length,
                vocab_size=self.vocab_size,
                device=self._device,
                emit=emit,
                grammar=None if grammar is None else grammar.copy(),
                executor=self._mask_executor,
                prefix_key=prefix_key,
            )
            for choice in range(num_answers)
        )

    # -- called from the engine's thread

    def _run(self) -> None:
        with torch.inference_mode():
            while self._waiting.wait_for_work(self._is_busy):
                try:
                    self._step()
                except Exception as error:
                    _fail(self._batch.clear(), "the model failed", error)
                self._counts["partial"] = len(self._batch.partial or ())
                self._counts["kept"] = self._batch.memory.kept.num_tokens
            unfinished = [*self._batch.clear(), *chain(*self._waiting.take(lambda _: True))]
        for sequence in unfinished:
            sequence.fail(EngineClosedError("the engine was closed while it served the request"))

    def _is_busy(self) -> bool:
        return bool(self._batch.sequences or self._batch.partial)

    def _step(self) -> None:
        self._batch.remove_finished()
        if chunks := self._scheduler.next_chunks():
            started = time.perf_counter()
            self._prefill(chunks)
            num_tokens = len(chunks) * max(len(chunk.columns) for chunk in chunks)
            self._scheduler.pace.record_prompts(num_tokens, time.perf_counter() - started)
            self._batch.remove_finished()  # the first token may be the last one
        if self._batch.sequences:
            started = time.perf_counter()
            token_ids = self._sample(self._batch.decode())
            self._scheduler.pace.record_step(time.perf_counter() - started)
            if token_ids is not None:
                self._batch.set_next_token_ids(token_ids)

    def _prefill(self, chunks: list[PromptChunk]) -> None:
        """Compute prompts together, or one by one if that fails, so that each fails alone."""
        try:
            step = self._batch.prefill(chunks)
        except Exception as error:
            failure = error.with_traceback(None)
        else:
            if step is not None:
                for chunk in chunks:  # before their first tokens arrive, which may be the last ones
                    self._counts["prompt"] += chunk.first.num_prompt_tokens
                    self._counts["cached"] += chunk.first.num_cached
                self._sample(step)
            return
        if len(chunks) == 1:
            self._batch.drop(chunks[0].group, is_damaged=True)
            _fail(chunks[0].group, "the model failed", failure)
            return
        for chunk in chunks:
            self._prefill([chunk])

    def _sample(self, step: Step) -> Tensor | None:
        """Sample the next token of each sequence, and add it to the sequence.

        Shapes:
            result: [sequences] int64, or ``None`` where some sequence did not accept its token.
        """
        try:
            sampled = choose_tokens(step.logits, [sequence.sampler for sequence in step.sequences])
            token_ids = sampled.tolist()  # waits for the device
        except Exception as error:
            _fail(step.sequences, "the model failed", error)
            return None
        all_accepted = True
        for sequence, token_id, logits in zip(step.sequences, token_ids, step.logits, strict=True):
            if token_id == INVALID_TOKEN_ID:
                sequence.num_reusable = 0
                sequence.accept_none(logits)
            else:
                sequence.num_reusable = sequence.num_computed
                self._accept(sequence, token_id, logits, step.prompt_logits)
            all_accepted = all_accepted and sequence.last_token_id == token_id
        return sampled if all_accepted else None

    def _accept(
        self,
        sequence: TransformersSequence,
        token_id: int,
        logits: Tensor,
        prompt_logits: Tensor | None,
    ) -> None:
        """Add a sampled token to a sequence, unless it was cancelled meanwhile."""
        if sequence.is_finished:
            return
        try:
            sequence.accept(token_id, logits, prompt_logits)
        except EngineError as error:
            sequence.fail(error)
        except Exception as error:
            _fail([sequence], "the answer could not be continued", error)


def _fail(sequences: Iterable[TransformersSequence], what: str, cause: Exception) -> None:
    cause = cause.with_traceback(None)  # a traceback would keep the tensors of its frames alive
    for sequence in sequences:
        error = EngineError(f"{what}: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        sequence.fail(error)
