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
from vlcore.engines.transformers.prompt_batch import PromptBatch
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
        self.max_num_seqs = max_num_seqs
        self.max_cached_tokens = 0
        """Maximum size of the cache, in tokens: the number of slots times their length."""
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._device = device
        config = model.config.get_text_config()
        self._masks = AttentionMasks(config, model.dtype)
        self._cache = SlotKVCache(config)
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
        self._compute_prompts(PromptBatch([probe], self._embedding, self._device))
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
    def needs_equal_lengths(self) -> bool:
        """Whether prompts that are computed together must have the same length."""
        return self._cache.has_states

    def has_room(self, new_sequences: Sequence[TransformersSequence]) -> bool:
        """Return whether sequences can be added and still reach their maximum lengths."""
        num_slots, length = self._size_with(new_sequences)
        return num_slots <= self.max_num_seqs and num_slots * length <= self.max_cached_tokens

    def prefill(self, groups: Sequence[SequenceGroup]) -> Step:
        """Compute the prompts of requests, and add their sequences to the batch.

        Args:
            groups: the sequences of each request, which share its prompt. A request that asks for
                the logits of its prompt must be the only one.
        """
        # The first sequence of each group is computed, and the others copy its keys and values.
        firsts = [group[0] for group in groups]
        new_sequences = [*firsts, *(sequence for group in groups for sequence in group[1:])]
        self._reserve(new_sequences)
        prompts = PromptBatch([first.request for first in firsts], self._embedding, self._device)
        logits, prompt_logits = self._compute_prompts(
            prompts, keep_all_logits=firsts[0].wants_prompt_logits
        )
        first_slot = len(self.sequences)
        group_indexes = {id(seq): index for index, group in enumerate(groups) for seq in group}
        indexes = [group_indexes[id(sequence)] for sequence in new_sequences]
        for slot, index in enumerate(indexes[len(firsts) :], start=first_slot + len(firsts)):
            self._cache.copy(first_slot + index, slot, prompts.lengths[index])
        self.sequences += new_sequences
        self._token_ids = None
        return Step(tuple(new_sequences), logits[indexes], prompt_logits)

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
            attention_mask=self._masks.of_next_tokens(positions, max(lengths)),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self._token_ids, self._positions = None, positions + 1
        return Step(tuple(self.sequences), logits.float())

    def set_next_token_ids(self, token_ids: Tensor) -> None:
        """Set the inputs of the next step, which saves copying them from the host.

        Shapes:
            token_ids: [sequences] int64, the last token of each sequence.
        """
        self._token_ids = token_ids

    def clear_slot(self, sequence: TransformersSequence) -> None:
        """Set the keys and values of a sequence to zero, because they hold NaN or infinity."""
        self._cache.clear(self.sequences.index(sequence))

    def clear(self) -> tuple[TransformersSequence, ...]:
        """Remove and return all sequences."""
        removed = tuple(self.sequences)
        self.sequences.clear()
        self._token_ids = None
        return removed

    def remove_finished(self) -> None:
        """Remove the sequences that have finished, and move the last ones into their slots."""
        for slot in reversed(range(len(self.sequences))):
            if not self.sequences[slot].is_finished:
                continue
            self._token_ids = None
            last = self.sequences.pop()
            if slot < len(self.sequences):
                self._cache.copy(len(self.sequences), slot, last.num_tokens)
                self.sequences[slot] = last

    def _size_with(self, new_sequences: Sequence[TransformersSequence]) -> tuple[int, int]:
        """Return the number of slots that are needed, and their length in tokens."""
        sequences = [*self.sequences, *new_sequences]
        return len(sequences), max(sequence.max_num_tokens for sequence in sequences)

    def _reserve(self, new_sequences: Sequence[TransformersSequence]) -> None:
        num_slots, length = self._size_with(new_sequences)
        if num_slots <= self._cache.num_slots and length <= self._cache.slot_length:
            return
        # The number of slots is doubled, so that requests that arrive one by one seldom cause the
        # cache to be copied.
        doubled = min(1 << (num_slots - 1).bit_length(), self.max_num_seqs)
        rounded = -(-length // _COLUMN_STEP) * _COLUMN_STEP
        for sizes in ((doubled, rounded), (num_slots, rounded), (num_slots, length)):
            if sizes[0] * sizes[1] <= self.max_cached_tokens:
                break
        self._cache.reserve(*sizes, num_used=len(self.sequences))

    def _compute_prompts(
        self, prompts: PromptBatch, *, keep_all_logits: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Compute prompts, whose keys and values are stored after those of the running sequences.

        Shapes:
            results: [prompts, vocab] float32, for the first token after each prompt, and with
                ``keep_all_logits`` [tokens, vocab] for the first prompt.
        """
        # With causal attention, no token attends to padding on the right.
        last_positions = sorted({length - 1 for length in prompts.lengths})
        kept = range(prompts.longest) if keep_all_logits else last_positions
        self._cache.prefill(len(self.sequences))
        logits = self._model(
            **prompts.model_inputs(),
            attention_mask=self._masks.of_prompts(prompts.attention_groups()),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=self._device),
        ).logits.float()
        columns = [kept.index(length - 1) for length in prompts.lengths]
        last = logits[range(len(columns)), columns]
        return last, copy_to_host(logits[0, : prompts.lengths[0]]) if keep_all_logits else None
