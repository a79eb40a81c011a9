"""``Batch``: the running sequences, computed together by a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from vlcore.engines.base import EngineRequest
from vlcore.engines.logprobs import copy_to_host
from vlcore.engines.transformers.attention import attention_name, use_ragged_attention
from vlcore.engines.transformers.attention_masks import AttentionMasks
from vlcore.engines.transformers.cache_layer import Decode, Prefill
from vlcore.engines.transformers.compiled_layers import CompiledLayers
from vlcore.engines.transformers.kv_cache import KVCache
from vlcore.engines.transformers.kv_cache_manager import KVCacheManager
from vlcore.engines.transformers.model_check import (
    CHECKED_TOKEN_IDS,
    OTHER_POSITIONS,
    check_model,
)
from vlcore.engines.transformers.prefix import Prefix
from vlcore.engines.transformers.prompt_batch import PromptBatch
from vlcore.engines.transformers.prompt_chunk import PromptChunk
from vlcore.engines.transformers.sequence import SequenceGroup, TransformersSequence
from vlcore.engines.transformers.strided_rows import (
    StridedRows,
    arrange,
    max_padding,
    strided_rows,
)
from vlcore.errors import EngineUnavailableError
from vlcore.language.prompt_inputs import PromptInputs
from vlcore.prompts.tokenization import TokenizedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHECKED = range(len(CHECKED_TOKEN_IDS))


@dataclass(frozen=True)
class Step:
    """The result of one forward pass.

    Shapes:
        logits: [sequences, vocab] float32, for the next token of each sequence.
        prompt_logits: [prompt tokens, vocab] float32 on the host, where requested; the pass then
            computes a single prompt.
    """

    sequences: tuple[TransformersSequence, ...]
    logits: Tensor
    prompt_logits: Tensor | None = None


@dataclass(frozen=True)
class _StepInputs:
    """The inputs of a decoding step.

    Shapes:
        token_ids, positions, columns: [sequences] int64, the last token of each sequence, its
            position, which is the same on all axes, and the column of the cache that it gets.
    """

    token_ids: Tensor
    positions: Tensor
    columns: Tensor


class Batch:
    """Sequences that are computed together; they are added and removed between two steps.

    Args:
        model: the language model.
        device: device of the model.
        max_num_seqs: maximum number of sequences.

    Raises:
        EngineUnavailableError: the engine does not support the type or the attention of layers.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, max_num_seqs: int) -> None:
        self.sequences: list[TransformersSequence] = []
        """The running sequences, in the order of the next step."""
        self.partial: SequenceGroup | None = None
        """The answers to a prompt of which a part is computed."""
        self.max_num_seqs = max_num_seqs
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._device = device
        config = model.config.get_text_config()
        is_eager = attention_name(config) == "eager"
        self._masks = AttentionMasks(config, model.dtype, device, is_eager=is_eager)
        self._cache = KVCache(config)
        use_ragged_attention(model)
        self.memory = KVCacheManager(self._cache)
        """The columns of the cache, and what is kept of sequences that have ended."""
        self._partial_logits: list[Tensor | None] = []
        """The logits of the tokens of :attr:`partial`, if they are requested."""
        self._compiled_layers: CompiledLayers | None = None
        self._rows: list[StridedRows] | None = None
        """How the sequences are read in a step; ``None`` if they have to be arranged again."""
        self._inputs: _StepInputs | None = None
        """The inputs of the next step, where they are on the device already."""
        self._following: _StepInputs | None = None
        """The inputs of the next step, except the token ids, which are those of the last one."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the model's embedding table."""
        return len(cast("Tensor", self._embedding.weight))

    def measure_cache(self) -> Tensor:
        """Run a prompt of two tokens through the model, after which the sizes in bytes are known.

        Shapes:
            result: [vocab] float32, the logits of the last token.

        Raises:
            EngineUnavailableError: the model keeps its keys, values or states elsewhere.
        """
        self._cache.reserve(len(CHECKED_TOKEN_IDS))
        logits = self._compute_checked(_CHECKED)
        layers = self._cache.key_value_layers
        is_read = all(layer.is_read for layer in layers if layer.is_initialized)
        if not is_read or not self.bytes_per_token + self.bytes_per_sequence:
            raise EngineUnavailableError(
                f"the transformers engine cannot run {type(self._model).__name__}, because it does "
                "not keep its keys, values or states in the cache that it is given"
            )
        return logits

    def check(self, *, has_attention_groups: bool = False) -> None:
        """Measure the cache, and check that the model computes what the engine needs of it.

        Args:
            has_attention_groups: whether prompts state which tokens attend to later ones.

        Raises:
            EngineUnavailableError: the model keeps its keys, values or states elsewhere, would
                compute wrong results with what the engine gives to it, or a forward pass failed.
        """

        def compute_in_chunks() -> Tensor:
            self._compute_checked(_CHECKED[:1])
            return self._compute_checked(_CHECKED[1:])

        check_model(
            type(self._model).__name__,
            self.measure_cache,
            self._compute_checked_token_ids,
            lambda: self._compute_checked(_CHECKED, OTHER_POSITIONS),
            None if self.needs_whole_prompts else compute_in_chunks,
        )
        is_causal = all(layer.is_causal for layer in self._cache.key_value_layers)
        if not is_causal and not has_attention_groups:
            raise EngineUnavailableError(
                f"the transformers engine cannot run {type(self._model).__name__}, because its "
                'tokens attend to later ones, and its plugin does not declare "attention_groups"'
            )

    def compile(self) -> None:
        """Compile the decoder layers for decoding steps, after :meth:`measure_cache`.

        Raises:
            EngineUnavailableError: the device is not a CPU, there is no C++ compiler, or the model
                does not allow it.
        """
        if self._device.type != "cpu":
            raise EngineUnavailableError(
                f"compile=True is for a CPU, and the model is on {self._device}"
            )
        self._compiled_layers = CompiledLayers(
            self._model, self._cache, self._run_probe, self.max_num_seqs
        )

    @property
    def bytes_per_token(self) -> int:
        """Size of a cached token, after the first forward pass."""
        return self._cache.bytes_per_token

    @property
    def bytes_per_sequence(self) -> int:
        """Size of what is cached for a sequence of any length, after the first forward pass."""
        return self._cache.bytes_per_sequence

    @property
    def needs_whole_prompts(self) -> bool:
        """Whether a prompt must be computed at once, and only with others of its length.

        That is so where layers keep a state of all earlier tokens, which padding would change.
        """
        return self._cache.has_states

    def has_room(self, new_sequences: Sequence[TransformersSequence]) -> bool:
        """Return whether sequences can be added and still reach their maximum lengths."""
        sequences = [*self.sequences, *(self.partial or ()), *new_sequences]
        num_tokens = sum(sequence.max_num_tokens for sequence in sequences)
        return len(sequences) <= self.max_num_seqs and num_tokens <= self.memory.max_cached_tokens

    def find_prefix(self, sequence: TransformersSequence) -> Prefix:
        """Return the longest beginning of a prompt whose keys and values can be reused."""
        return self.memory.find_prefix(sequence, [*self.sequences, *(self.partial or ())[:1]])

    def prefill(self, chunks: Sequence[PromptChunk]) -> Step | None:
        """Compute the next chunks of prompts, and add the sequences of complete prompts.

        Args:
            chunks: the chunks. One that does not complete its prompt, or belongs to a prompt whose
                logits are requested, must be the only one, and so must that of :attr:`partial`.

        Returns:
            The step of the added sequences, or ``None`` if the prompt is not complete.
        """
        is_last, is_partial = chunks[0].is_last, chunks[0].group is self.partial
        for chunk in chunks:
            self._rows = None
            self.memory.assign(chunk)
        requests = [chunk.first.request for chunk in chunks]
        columns = [range(chunk.first.num_computed, chunk.columns.stop) for chunk in chunks]
        prompts = PromptBatch(requests, columns, self._embedding, self._device)
        logits, prompt_logits = self._compute_prompts(
            prompts,
            [chunk.first.region.start for chunk in chunks if chunk.first.region is not None],
            keep_all_logits=chunks[0].first.wants_prompt_logits,
        )
        for chunk in chunks:
            chunk.first.num_computed = chunk.columns.stop
        parts = [*(self._partial_logits if is_partial else ()), prompt_logits]
        if not is_last:
            self.partial, self._partial_logits = chunks[0].group, parts
            if logits.max().isfinite():
                chunks[0].first.num_reusable = chunks[0].first.num_computed
            return None
        if is_partial:
            self.partial = None
        new_sequences, indexes = self._join(chunks)
        if prompt_logits is not None and len(parts) > 1:
            prompt_logits = copy_to_host(torch.cat(cast("list[Tensor]", parts)))
        return Step(tuple(new_sequences), logits[indexes], prompt_logits)

    def drop(self, group: SequenceGroup, *, is_damaged: bool) -> None:
        """Remove the sequences of a prompt that is not complete, and keep what can be reused.

        Args:
            group: the sequences.
            is_damaged: whether a forward pass failed.
        """
        if group is self.partial:
            self.partial = None
        self._rows = None
        for sequence in group:
            self.memory.release(sequence, is_damaged=is_damaged)

    def decode(self) -> Step:
        """Compute the logits of the next token of every sequence."""
        rows = self._rows
        if rows is None:
            rows = self._rows = self._arrange()
            self._inputs = None
        inputs = self._inputs or self._step_inputs()
        lengths = [sequence.num_tokens for sequence in self.sequences]
        self._cache.begin(Decode(inputs.columns, self._masks.next_tokens(rows, lengths)))
        with self._compiled_layers.use() if self._compiled_layers else nullcontext():
            logits = self._compute_step(inputs.token_ids, inputs.positions)
        self._inputs = None
        self._following = _StepInputs(inputs.token_ids, inputs.positions + 1, inputs.columns + 1)
        for sequence, length in zip(self.sequences, lengths, strict=True):
            sequence.num_computed = length
        return Step(tuple(self.sequences), logits)

    def set_next_token_ids(self, token_ids: Tensor) -> None:
        """Set the inputs of the next step, which saves copying them from the host.

        Shapes:
            token_ids: [sequences] int64, the last token of each sequence.
        """
        if self._following is not None:
            self._inputs = replace(self._following, token_ids=token_ids)

    def clear(self) -> tuple[TransformersSequence, ...]:
        """Remove and return all sequences, and keep nothing of them."""
        removed = (*self.sequences, *(self.partial or ()))
        self.sequences.clear()
        self.partial = None
        self._rows = None
        for sequence in removed:
            sequence.num_reusable = 0
            self.memory.release(sequence, is_damaged=True)
        return removed

    def remove_finished(self) -> None:
        """Remove the sequences that have finished, and keep what can be reused of them."""
        if self.partial is not None and all(one.is_finished for one in self.partial):
            self.drop(self.partial, is_damaged=False)
        if any(sequence.is_finished for sequence in self.sequences):
            finished = [sequence for sequence in self.sequences if sequence.is_finished]
            self._reorder([i for i, one in enumerate(self.sequences) if not one.is_finished])
            for sequence in finished:
                self.memory.release(sequence)

    def _join(self, chunks: Sequence[PromptChunk]) -> tuple[list[TransformersSequence], list[int]]:
        """Add the sequences of prompts that were computed.

        Returns:
            The sequences, and for each of them the index of its prompt.
        """
        new_sequences, indexes = [], []
        for index, chunk in enumerate(chunks):
            for sequence in chunk.group:
                if sequence is not chunk.first:
                    self.memory.copy_prompt(chunk.first, sequence)
                new_sequences.append(sequence)
                indexes.append(index)
        num_running = len(self.sequences)
        self._cache.arrange([*range(num_running), *(num_running + index for index in indexes)])
        self.sequences += new_sequences
        self._rows = None
        return new_sequences, indexes

    def _reorder(self, order: Sequence[int]) -> None:
        self.sequences[:] = [self.sequences[index] for index in order]
        self._cache.arrange(order)
        self._rows = None

    def _compute_step(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Compute a decoding step.

        Shapes:
            token_ids, positions: [sequences] int64.
            result: [sequences, vocab] float32.
        """
        logits: Tensor = self._model(
            input_ids=token_ids[:, None],
            position_ids=positions[:, None],
            attention_mask=self._masks.placeholder,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1].float()

    def _run_probe(self, num_sequences: int) -> Tensor:
        """Compute a decoding step whose sequences all have the first column of the cache."""
        zeros = torch.zeros(num_sequences, dtype=torch.long, device=self._device)
        rows = [StridedRows(slice(0, num_sequences), 0, 0)]
        calls = self._masks.next_tokens(rows, [1] * num_sequences)
        self._cache.begin(Decode(zeros, calls))
        return self._compute_step(zeros, zeros)

    def _step_inputs(self) -> _StepInputs:
        positions = [sequence.num_tokens - 1 for sequence in self.sequences]
        starts = [sequence.region.start for sequence in self.sequences if sequence.region]
        deltas = [sequence.request.inputs.rope_delta for sequence in self.sequences]
        values = torch.tensor(
            [
                [sequence.last_token_id for sequence in self.sequences],
                [sum(pair) for pair in zip(positions, deltas, strict=True)],
                [sum(pair) for pair in zip(positions, starts, strict=True)],
            ],
            device=self._device,
        )
        return _StepInputs(*values)

    def _arrange(self) -> list[StridedRows]:
        """Order the sequences so that few calls compute their attention."""
        cached = self.memory.cached_lengths(self.sequences, self.partial or ())
        num_layers = max(1, len(self._cache.key_value_layers))
        padding = max_padding(self.bytes_per_token // num_layers, self._device.type)
        groups = arrange(cached, padding)
        self._reorder([index for group in groups for index in group])
        return list(strided_rows(groups, [one.start for one in cached]))

    def _compute_checked(
        self, columns: range, positions: tuple[int, ...] = tuple(_CHECKED)
    ) -> Tensor:
        """Compute a part of the prompt of :meth:`check`, from embeddings."""
        inputs = PromptInputs(torch.tensor([positions]))
        checked = EngineRequest(TokenizedPrompt(CHECKED_TOKEN_IDS), inputs=inputs)
        prompts = PromptBatch([checked], [columns], self._embedding, self._device)
        return self._compute_prompts(prompts, [0])[0][0]

    def _compute_checked_token_ids(self) -> Tensor:
        calls = self._masks.whole_prompts([len(_CHECKED)], None)
        self._cache.begin(Prefill((_CHECKED,), calls, True))
        logits: Tensor = self._model(
            input_ids=torch.tensor([CHECKED_TOKEN_IDS], device=self._device),
            position_ids=torch.tensor([_CHECKED], device=self._device),
            attention_mask=self._masks.placeholder,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[0, -1].float()

    def _compute_prompts(
        self, prompts: PromptBatch, starts: Sequence[int], *, keep_all_logits: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Compute parts of prompts.

        Args:
            prompts: the parts.
            starts: the first column of each prompt in the cache.
            keep_all_logits: return the logits of all tokens of a single prompt.

        Shapes:
            results: [prompts, vocab] float32, for the token after each part, and with
                ``keep_all_logits`` [columns, vocab] for the part of the first prompt.
        """
        # With causal attention, no token attends to padding on the right.
        lengths = [len(columns) for columns in prompts.columns]
        kept = range(prompts.longest) if keep_all_logits else sorted({n - 1 for n in lengths})
        begins = not any(columns.start for columns in prompts.columns)
        groups = prompts.attention_groups()
        calls = (
            self._masks.whole_prompts(lengths, groups)
            if begins
            else self._masks.prompt_chunks(starts, prompts.columns, groups)
        )
        cached = [
            range(start + columns.start, start + columns.stop)
            for start, columns in zip(starts, prompts.columns, strict=True)
        ]
        self._cache.begin(Prefill(tuple(cached), calls, begins))
        logits = self._model(
            **prompts.model_inputs(),
            attention_mask=self._masks.placeholder,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=self._device),
        ).logits.float()
        last = logits[range(len(lengths)), [kept.index(length - 1) for length in lengths]]
        return last, copy_to_host(logits[0, : lengths[0]]) if keep_all_logits else None
