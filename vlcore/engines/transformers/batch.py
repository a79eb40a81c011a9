"""``Batch``: the running sequences, computed together by a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from vlcore.engines.base import EngineRequest
from vlcore.engines.logprobs import copy_to_host
from vlcore.engines.transformers.attention_masks import AttentionMasks
from vlcore.engines.transformers.kv_cache import SlotKVCache
from vlcore.engines.transformers.prefix import Prefix
from vlcore.engines.transformers.prefix_cache import PrefixCache
from vlcore.engines.transformers.prefix_key import common_length
from vlcore.engines.transformers.prompt_batch import PromptBatch
from vlcore.engines.transformers.prompt_chunk import PromptChunk, all_sequences
from vlcore.engines.transformers.sequence import SequenceGroup, TransformersSequence
from vlcore.errors import EngineUnavailableError
from vlcore.prompts.tokenization import TokenizedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COLUMN_STEP = 64
"""Slot lengths are rounded up to a multiple of this."""


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
        """The running sequences; the index of a sequence is its slot in the cache."""
        self.partial: SequenceGroup | None = None
        """The answers to a prompt of which a part is computed."""
        self.kept = PrefixCache()
        """Keys and values of sequences that have ended."""
        self.max_num_seqs = max_num_seqs
        self.max_cached_tokens = 0
        """Maximum size of the cache, in tokens: the number of slots times their length, and the
        kept tokens."""
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._device = device
        config = model.config.get_text_config()
        self._masks = AttentionMasks(config, model.dtype, device)
        self._cache = SlotKVCache(config)
        self._partial_slot = 0
        """The slot of the first sequence of :attr:`partial`, after those of all others."""
        self._partial_logits: list[Tensor | None] = []
        """The logits of its tokens, if they are requested."""
        # The inputs of the next step, where they are on the device already.
        self._token_ids: Tensor | None = None
        self._positions: Tensor | None = None
        self._rope_deltas: Tensor | None = None
        """Differences between positions and columns of the cache; ``None`` where all are 0."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the model's embedding table."""
        return len(cast("Tensor", self._embedding.weight))

    def measure_cache(self) -> None:
        """Run one token through the model, after which the sizes in bytes are known.

        Raises:
            EngineUnavailableError: the model keeps its keys, values or states elsewhere.
        """
        self._cache.reserve(1, 1, num_used=0)
        probe = EngineRequest(TokenizedPrompt((0,)))
        self._compute_prompts(PromptBatch([probe], [range(1)], self._embedding, self._device), 0)
        if not self.bytes_per_token + self.bytes_per_sequence:
            raise EngineUnavailableError(
                f"the transformers engine cannot run {type(self._model).__name__}, because it does "
                "not keep its keys, values or states in the cache that it is given"
            )

    @property
    def bytes_per_token(self) -> int:
        """Size of a cached token, after the first forward pass."""
        return self._cache.bytes_per_token

    @property
    def bytes_per_sequence(self) -> int:
        """Size of what is cached for a sequence of any length, after the first forward pass."""
        return self._cache.bytes_per_slot

    @property
    def needs_whole_prompts(self) -> bool:
        """Whether a prompt must be computed at once, and only with others of its length.

        That is so where layers keep a state of all earlier tokens, which padding would change.
        """
        return self._cache.has_states

    def has_room(self, new_sequences: Sequence[TransformersSequence]) -> bool:
        """Return whether sequences can be added and still reach their maximum lengths."""
        num_slots = self._num_sequences + len(new_sequences)
        length = self._max_length(new_sequences)
        return num_slots <= self.max_num_seqs and num_slots * length <= self.max_cached_tokens

    def find_prefix(self, sequence: TransformersSequence) -> Prefix:
        """Return the longest beginning of a prompt whose keys and values can be reused.

        It remains valid until a step removes a running sequence.
        """
        if sequence.prefix_key is None or sequence.wants_prompt_logits:
            return Prefix()
        elements = sequence.prefix_key.elements
        longest = self.kept.find(elements)
        for other in [*self.sequences, *(self.partial or ())[:1]]:
            length = common_length(other.reusable_elements, elements)
            if length > longest.length:
                longest = Prefix(length, other)
        return longest.for_prompt(sequence)

    def prefill(self, chunks: Sequence[PromptChunk]) -> Step | None:
        """Compute the next chunks of prompts, and add the sequences of complete prompts.

        Args:
            chunks: the chunks. One that does not complete its prompt, or belongs to a prompt whose
                logits are requested, must be the only one, and so must that of :attr:`partial`.

        Returns:
            The step of the added sequences, or ``None`` if the prompt is not complete.
        """
        is_last, is_partial = chunks[0].is_last, chunks[0].group is self.partial
        new_sequences = all_sequences(chunks)
        self._reserve(new_sequences, is_partial=is_partial)
        first_slot = len(self.sequences)
        if is_partial and is_last:
            self._move_partial(first_slot)
        elif is_partial or not is_last:
            first_slot = self._partial_slot
        for slot, chunk in enumerate(chunks, start=first_slot):
            self._copy_prefix(chunk, slot)
        requests = [chunk.first.request for chunk in chunks]
        columns = [chunk.columns for chunk in chunks]
        prompts = PromptBatch(requests, columns, self._embedding, self._device)
        logits, prompt_logits = self._compute_prompts(
            prompts, first_slot, keep_all_logits=chunks[0].first.wants_prompt_logits
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
        indexes = self._join(chunks, new_sequences)
        if prompt_logits is not None and len(parts) > 1:
            prompt_logits = copy_to_host(torch.cat(cast("list[Tensor]", parts)))
        return Step(tuple(new_sequences), logits[indexes], prompt_logits)

    def drop_partial(self) -> None:
        """Drop the prompt that is partly computed, and keep what can be reused of it."""
        if self.partial is not None:
            first, self.partial = self.partial[0], None
            self._keep(first, self._partial_slot)
            if first.num_reusable < first.num_computed:
                self._cache.clear(self._partial_slot)

    def decode(self) -> Step:
        """Compute the logits of the next token of every sequence."""
        lengths = [sequence.num_tokens for sequence in self.sequences]
        token_ids, positions = self._token_ids, self._positions
        if token_ids is None or positions is None:
            token_ids = torch.tensor([s.last_token_id for s in self.sequences], device=self._device)
            positions = torch.tensor(lengths, device=self._device) - 1
            deltas = [sequence.request.inputs.rope_delta for sequence in self.sequences]
            self._rope_deltas = torch.tensor(deltas, device=self._device) if any(deltas) else None
        self._cache.decode(positions, max(lengths))
        # One step is as far on all axes, so that the model is given one position for all of them.
        position_ids = positions if self._rope_deltas is None else positions + self._rope_deltas
        logits = self._model(
            input_ids=token_ids[:, None],
            position_ids=position_ids[:, None],
            attention_mask=self._masks.next_token_masks(positions, max(lengths)),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self._token_ids, self._positions = None, positions + 1
        for sequence, length in zip(self.sequences, lengths, strict=True):
            sequence.num_computed = length
        return Step(tuple(self.sequences), logits.float())

    def set_next_token_ids(self, token_ids: Tensor) -> None:
        """Set the inputs of the next step, which saves copying them from the host.

        Shapes:
            token_ids: [sequences] int64, the last token of each sequence.
        """
        self._token_ids = token_ids

    def clear_slot(self, sequence: TransformersSequence) -> None:
        """Set the keys and values of a sequence to zero, because they hold NaN or infinity."""
        sequence.num_reusable = 0
        self._cache.clear(self.sequences.index(sequence))

    def clear(self) -> tuple[TransformersSequence, ...]:
        """Remove and return all sequences, and keep nothing of them."""
        removed = (*self.sequences, *(self.partial or ()))
        self.sequences.clear()
        self.partial = None
        self._token_ids = None
        return removed

    def remove_finished(self) -> None:
        """Remove the sequences that have finished, and move the last ones into their slots."""
        if self.partial is not None and all(one.is_finished for one in self.partial):
            self.drop_partial()
        for slot in reversed(range(len(self.sequences))):
            if not self.sequences[slot].is_finished:
                continue
            self._token_ids = None
            self._keep(self.sequences[slot], slot)
            last = self.sequences.pop()
            if slot < len(self.sequences):
                self._cache.copy(len(self.sequences), slot, last.num_computed)
                self.sequences[slot] = last
        if self.kept.num_tokens > max(0, self._max_kept_tokens):
            sizes = self._num_sequences, self._max_length()
            self._cache.reserve(*sizes, num_used=self._gather())
            self.kept.shrink(self._max_kept_tokens)

    # -- slots

    @property
    def _num_sequences(self) -> int:
        return len(self.sequences) + len(self.partial or ())

    def _max_length(self, new_sequences: Sequence[TransformersSequence] = ()) -> int:
        """Return the maximum length of the longest sequence, in tokens."""
        sequences = [*self.sequences, *(self.partial or ()), *new_sequences]
        return max((sequence.max_num_tokens for sequence in sequences), default=0)

    def _reserve(self, new_sequences: Sequence[TransformersSequence], *, is_partial: bool) -> None:
        """Allocate slots for sequences that follow the running ones."""
        num_slots = self._num_sequences + (0 if is_partial else len(new_sequences))
        length = self._max_length(new_sequences)
        if num_slots > self._cache.num_slots or length > self._cache.slot_length:
            # The number of slots is doubled, so that requests that arrive one by one seldom cause
            # the cache to be copied.
            doubled = min(1 << (num_slots - 1).bit_length(), self.max_num_seqs)
            rounded = -(-length // _COLUMN_STEP) * _COLUMN_STEP
            for sizes in ((doubled, rounded), (num_slots, rounded), (num_slots, length)):
                if sizes[0] * sizes[1] <= self.max_cached_tokens:
                    break
            self.kept.shrink(self.max_cached_tokens - sizes[0] * sizes[1])
            self._cache.reserve(*sizes, num_used=self._gather())
        is_in_the_way = self._partial_slot < len(self.sequences) + len(new_sequences)
        if self.partial is None or (is_in_the_way and not is_partial):
            self._move_partial(self._cache.num_slots - 1)

    def _gather(self) -> int:
        """Move what is in use to the first slots, and return their number."""
        if self.partial is None:
            return len(self.sequences)
        self._move_partial(len(self.sequences))
        return len(self.sequences) + 1

    def _move_partial(self, slot: int) -> None:
        if self.partial is not None and slot != self._partial_slot:
            self._cache.copy(self._partial_slot, slot, self.partial[0].num_computed)
        self._partial_slot = slot

    def _copy_prefix(self, chunk: PromptChunk, slot: int) -> None:
        """Copy the columns before a chunk into its slot, unless they are there."""
        prefix, first = chunk.prefix, chunk.first
        if not prefix.length:
            return
        if prefix.sequence is not None:
            is_partial = self.partial is not None and prefix.sequence is self.partial[0]
            source = self._partial_slot if is_partial else self.sequences.index(prefix.sequence)
            self._cache.copy(source, slot, prefix.length)
        column = 0
        for states in prefix.parts:
            used = tuple(one[:, : prefix.length - column] for one in states)
            self._cache.write(slot, column, used)
            column += used[0].shape[1]
        if prefix.sequence is None and first.prefix_key is not None:
            self.kept.touch(first.prefix_key.elements[: prefix.length])
        first.num_computed = first.num_reusable = prefix.length
        for sequence in chunk.group:
            sequence.num_cached = prefix.length

    def _join(
        self, chunks: Sequence[PromptChunk], new_sequences: Sequence[TransformersSequence]
    ) -> list[int]:
        """Add sequences whose prompts were computed in the slots after the running ones.

        Returns:
            For each sequence, the index of its prompt.
        """
        index_of = {id(seq): index for index, chunk in enumerate(chunks) for seq in chunk.group}
        indexes = [index_of[id(sequence)] for sequence in new_sequences]
        first_slot = len(self.sequences)
        for number in range(len(chunks), len(new_sequences)):
            index = indexes[number]
            new_sequences[number].num_computed = chunks[index].columns.stop
            self._cache.copy(first_slot + index, first_slot + number, chunks[index].columns.stop)
        self.sequences += new_sequences
        self._token_ids = None
        return indexes

    # -- kept tokens

    @property
    def _max_kept_tokens(self) -> int:
        """How many tokens may be kept in addition to the allocated slots."""
        return self.max_cached_tokens - self._cache.num_slots * self._cache.slot_length

    def _keep(self, sequence: TransformersSequence, slot: int) -> None:
        """Keep what can be reused of a sequence that has ended."""
        elements = sequence.reusable_elements
        if not elements:
            return
        unfinished = [one for one in self.sequences if not one.is_finished]
        others = [*unfinished, *(self.partial or ())]
        num_needed = len(others) * max((one.max_num_tokens for one in others), default=0)
        max_tokens = self._max_kept_tokens
        # Slots are given up only if they are at least half of all, because the others are copied.
        if 2 * num_needed <= self._cache.num_slots * self._cache.slot_length:
            max_tokens = self.max_cached_tokens - num_needed
        self.kept.keep(
            elements, max_tokens, lambda start, stop: self._cache.read(slot, start, stop)
        )

    def _compute_prompts(
        self, prompts: PromptBatch, first_slot: int, *, keep_all_logits: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Compute parts of prompts, whose keys and values are stored in consecutive slots.

        Shapes:
            results: [prompts, vocab] float32, for the token after each part, and with
                ``keep_all_logits`` [columns, vocab] for the part of the first prompt.
        """
        # With causal attention, no token attends to padding on the right.
        lengths = [len(columns) for columns in prompts.columns]
        kept = range(prompts.longest) if keep_all_logits else sorted({n - 1 for n in lengths})
        self._cache.prefill(first_slot, prompts.columns)
        logits = self._model(
            **prompts.model_inputs(),
            attention_mask=self._masks.prompt_masks(prompts.columns, prompts.attention_groups()),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=self._device),
        ).logits.float()
        last = logits[range(len(lengths)), [kept.index(length - 1) for length in lengths]]
        return last, copy_to_host(logits[0, : lengths[0]]) if keep_all_logits else None
