"""``Batch``: the running sequences, computed together by a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlcore.engines.base import EngineRequest
from vlcore.engines.logprobs import copy_to_host
from vlcore.engines.transformers.kv_cache import SlotKVCache
from vlcore.engines.transformers.prompt_batch import pad_positions
from vlcore.engines.transformers.sequence import SequenceGroup, TransformersSequence
from vlcore.language.prompt_inputs import USUAL_INPUTS, PromptInputs

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
        EngineUnavailableError: the state of some layers is not keys and values.
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
        self._cache = SlotKVCache(model.config.get_text_config())
        # The inputs of the next step, where they are on the device already.
        self._token_ids: Tensor | None = None
        self._positions: Tensor | None = None
        self._rope_deltas: Tensor | None = None
        """Differences between positions and columns of the cache; ``None`` where all are 0."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the model's embedding table."""
        return len(cast("Tensor", self._embedding.weight))

    def measure_bytes_per_token(self) -> int:
        """Run one token through the model, and return the size of a cached token in bytes."""
        self._cache.reserve(1, 1, num_used=0)
        self._compute_prompts([self._embed_tokens([0])], [USUAL_INPUTS])
        return self._cache.bytes_per_token

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
        prompts = [self._embed_prompt(sequence.request) for sequence in firsts]
        logits, prompt_logits = self._compute_prompts(
            prompts,
            [sequence.request.inputs for sequence in firsts],
            keep_all_logits=firsts[0].wants_prompt_logits,
        )
        first_slot = len(self.sequences)
        group_indexes = {id(seq): index for index, group in enumerate(groups) for seq in group}
        indexes = [group_indexes[id(sequence)] for sequence in new_sequences]
        for slot, index in enumerate(indexes[len(firsts) :], start=first_slot + len(firsts)):
            self._cache.copy(first_slot + index, slot, len(prompts[index]))
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
        mask = self._cache.decode(positions, max(lengths))
        # One step is as far on all axes, so that the model is given one position for all of them.
        position_ids = positions if self._rope_deltas is None else positions + self._rope_deltas
        logits = self._model(
            input_ids=token_ids[:, None],
            position_ids=position_ids[:, None],
            attention_mask=mask,
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
        self,
        prompts: Sequence[Tensor],
        inputs: Sequence[PromptInputs],
        *,
        keep_all_logits: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute prompts, whose keys and values are stored after those of the running sequences.

        Shapes:
            prompts: [tokens, hidden_size] each.
            results: [prompts, vocab] float32, for the first token after each prompt, and with
                ``keep_all_logits`` [tokens, vocab] for the first prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        # With causal attention, no token attends to padding on the right.
        padded = [pad(prompt, (0, 0, 0, longest - len(prompt))) for prompt in prompts]
        last_positions = sorted({length - 1 for length in lengths})
        kept = range(longest) if keep_all_logits else last_positions
        self._cache.prefill(len(self.sequences))
        logits = self._model(
            inputs_embeds=torch.stack(padded),
            position_ids=pad_positions(inputs, longest).to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=self._device),
        ).logits.float()
        columns = [kept.index(length - 1) for length in lengths]
        last = logits[range(len(prompts)), columns]
        return last, copy_to_host(logits[0, : lengths[0]]) if keep_all_logits else None

    def _embed_prompt(self, request: EngineRequest) -> Tensor:
        """Look up the embeddings of a prompt's tokens, and insert the image embeddings.

        Shapes:
            result: [tokens, hidden_size].
        """
        embeddings = self._embed_tokens(request.prompt.token_ids)
        for span in request.prompt.spans:
            rows = request.rows[span.image]
            last_row = span.first_row + span.stop - span.start
            embeddings[span.start : span.stop] = rows[span.first_row : last_row].to(embeddings)
        return embeddings

    def _embed_tokens(self, token_ids: Sequence[int]) -> Tensor:
        embeddings: Tensor = self._embedding(torch.tensor(token_ids, device=self._device))
        return embeddings
