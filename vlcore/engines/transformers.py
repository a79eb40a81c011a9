"""The embedded engine: a transformers model fed with embeddings, in a thread of its own.

Requests that wait when the model becomes free run together as one padded batch.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from vlcore.engines.base import Engine, EngineOutput, EngineRequest, FinishReason
from vlcore.engines.detokenizer import Detokenizer
from vlcore.engines.sampler import Sampler
from vlcore.errors import EngineClosedError, EngineError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from vlcore.language import LanguageModel


@dataclass(frozen=True, kw_only=True)
class TransformersEngineConfig:
    """Settings of the embedded engine.

    Raises:
        OptionError: a setting is out of range.
    """

    max_num_seqs: int = 16
    """How many requests run together at most; the rest waits in order."""
    session_len: int | None = None
    """The longest sequence of prompt and answer; ``None`` for the model's own context."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "session_len"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name} must be a positive integer; it is {value!r}")


class TransformersEngine(Engine):
    """Runs the text part of any checkpoint through transformers, on CPU or CUDA.

    Args:
        language_model: the text part.
        tokenizer: decodes answers.
        device: where it runs.
        dtype: of weights and embeddings.
        config: settings.
        progress: show a progress bar while weights load.
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
        own_length = language_model.context_length
        self.context_length = min(config.session_len or own_length, own_length)
        if self.context_length == own_length:
            self.context_limit_reason = language_model.context_limit_reason
        self._config = config
        self._tokenizer = tokenizer
        self._device = device
        self._model: PreTrainedModel = language_model.to_transformers(
            device, dtype, progress=progress
        )
        self._embedding = self._model.get_input_embeddings()
        self.vocab_size = len(cast("Tensor", self._embedding.weight))
        self._eos_ids = _eos_ids(self._model, tokenizer)
        self._waiting: deque[_Sequence] = deque()
        self._wakeup = threading.Condition()
        self._closed = False
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
                sequence.cancelled = True

        sequence = _Sequence(request, self, emit)
        with self._wakeup:
            if self._closed:
                raise EngineClosedError("the engine was closed")
            self._waiting.append(sequence)
            self._wakeup.notify()
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, EngineError):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            sequence.cancelled = True

    async def close(self) -> None:
        """Cancel what runs and waits, and free the model."""
        with self._wakeup:
            self._closed = True
            self._wakeup.notify()
        # Looked at rather than joined in an executor, which no longer starts threads at exit.
        while self._thread.is_alive():
            await asyncio.sleep(0.005)
        self.__dict__.pop("_model", None)
        self.__dict__.pop("_embedding", None)

    # -- the engine's thread

    def _serve(self) -> None:
        while True:
            with self._wakeup:
                self._wakeup.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                size = min(len(self._waiting), self._config.max_num_seqs)
                batch = [self._waiting.popleft() for _ in range(size)]
            batch = [sequence for sequence in batch if not sequence.cancelled]
            try:
                with torch.inference_mode():
                    self._run(batch)
            except Exception as error:
                for sequence in batch:
                    sequence.fail(f"the model failed: {type(error).__name__}: {error}", error)
        for sequence in self._waiting:
            sequence.fail_closed()

    def _run(self, batch: list[_Sequence]) -> None:
        """Run a batch until every sequence in it is finished or cancelled."""
        if not batch:
            return
        embeddings, mask = self._pad([self._embed(sequence.request) for sequence in batch])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        inputs: dict[str, Tensor] = {"inputs_embeds": embeddings}
        while True:
            logits = self._model(
                **inputs,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            next_ids = self._advance(batch, logits.float())
            if self._closed:
                for sequence in batch:
                    sequence.fail_closed()
                return
            running = [row for row, sequence in enumerate(batch) if not sequence.finished]
            if not running:
                return
            if len(running) < len(batch):
                batch[:] = [batch[row] for row in running]
                rows = torch.tensor(running, device=self._device)
                cache.batch_select_indices(rows)
                mask, positions = mask[rows], positions[rows]
                next_ids = [next_ids[row] for row in running]
            mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
            positions = positions[:, -1:] + 1
            inputs = {"input_ids": torch.tensor(next_ids, device=self._device)[:, None]}

    def _advance(self, batch: list[_Sequence], logits: Tensor) -> list[int]:
        """Choose each sequence's next token and hand it over.

        Shapes:
            logits: [batch, vocab] float32.
        """
        best = logits.argmax(dim=-1)
        # argmax of a row with NaN is the NaN.
        damaged = logits.gather(1, best[:, None]).isnan().flatten().tolist()
        next_ids: list[int] = best.tolist()
        for row, sequence in enumerate(batch):
            if damaged[row]:
                sequence.fail("the model computed NaN logits: try another dtype")
                continue
            try:
                if not sequence.sampler.takes_argmax(len(sequence.generated)):
                    next_ids[row] = sequence.sampler.draw(logits[row], sequence.generated)
                sequence.accept(next_ids[row])
            except Exception as error:
                sequence.fail(f"sampling failed: {type(error).__name__}: {error}", error)
        return next_ids

    def _embed(self, request: EngineRequest) -> Tensor:
        """Look up a prompt's tokens and put image rows in their spans.

        Shapes:
            result: [tokens, hidden_size].
        """
        token_ids = torch.tensor(request.prompt.token_ids, device=self._device)
        embeddings: Tensor = self._embedding(token_ids)
        for span in request.prompt.spans:
            last_row = span.first_row + span.stop - span.start
            embeddings[span.start : span.stop] = request.rows[span.image][
                span.first_row : last_row
            ].to(embeddings)
        return embeddings

    def _pad(self, prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Pad prompts on the left.

        Shapes:
            results: [batch, tokens, hidden_size] and [batch, tokens] of int64, 0 where padded.
        """
        longest = max(map(len, prompts))
        padded = prompts[0].new_zeros(len(prompts), longest, self.hidden_size)
        mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=self._device)
        for row, prompt in enumerate(prompts):
            padded[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        return padded, mask


class _Sequence:
    """One request in the engine's thread."""

    def __init__(
        self,
        request: EngineRequest,
        engine: TransformersEngine,
        emit: Callable[[EngineOutput | EngineError], None],
    ) -> None:
        config = request.config
        self.request = request
        self.generated: list[int] = []
        self.cancelled = False
        self._done = False
        self._emit = emit
        stop_texts = () if config.ignore_eos else request.stop
        end_ids = set(() if config.ignore_eos else engine._eos_ids)
        texts = list(config.stop_words)
        for text in stop_texts:
            token_id = _control_id(engine._tokenizer, text)
            if token_id is None:
                texts.append(text)
            else:
                end_ids.add(token_id)
        self._end_ids = end_ids | set(config.stop_token_ids)
        num_prompt = len(request.prompt.token_ids)
        self._max_new_tokens = min(config.max_new_tokens, engine.context_length - num_prompt)
        self._detokenizer = Detokenizer(
            engine._tokenizer, texts, skip_special_tokens=config.skip_special_tokens
        )
        covered = {i for span in request.prompt.spans for i in range(span.start, span.stop)}
        self.sampler = Sampler(
            config,
            [t for i, t in enumerate(request.prompt.token_ids) if i not in covered],
            self._end_ids,
            engine._device,
        )

    @property
    def finished(self) -> bool:
        return self._done or self.cancelled

    def accept(self, token_id: int) -> None:
        """Take the next token and give out what text it makes certain."""
        if self.finished:
            return
        if token_id in self._end_ids:
            self._finish((), "stop", self._detokenizer.finish())
            return
        self.generated.append(token_id)
        text = self._detokenizer.add(token_id)
        if self._detokenizer.stopped:
            self._finish((token_id,), "stop", text)
        elif len(self.generated) >= self._max_new_tokens:
            text += self._detokenizer.finish()
            reason: FinishReason = "stop" if self._detokenizer.stopped else "length"
            self._finish((token_id,), reason, text)
        else:
            self._emit(EngineOutput(text, (token_id,)))

    def fail(self, message: str, cause: Exception | None = None) -> None:
        """End the request with an error."""
        if not self.finished:
            self._done = True
            error = EngineError(message)
            error.__cause__ = cause
            self._emit(error)

    def fail_closed(self) -> None:
        """End the request because the engine closes."""
        if not self.finished:
            self._done = True
            self._emit(EngineClosedError("the engine was closed while it served the request"))

    def _finish(self, token_ids: tuple[int, ...], reason: FinishReason, text: str) -> None:
        self._done = True
        self._emit(EngineOutput(text, token_ids, reason))


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer, by the model's generation settings and its tokenizer."""
    stated = getattr(model.generation_config, "eos_token_id", None)
    ids = stated if isinstance(stated, list) else [stated]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)


def _control_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The id of a special token, or ``None`` where the text is none."""
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.content == text:
            return int(token_id)
    return None
