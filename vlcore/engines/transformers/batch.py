"""The running sequences: a transformers model, and a slot of its cache for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlcore.engines.base import EngineRequest
from vlcore.engines.logprobs import to_host
from vlcore.engines.transformers.kv_cache import SlotKVCache
from vlcore.engines.transformers.sequence import RunningSequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COLUMN_STEP = 64
"""Slots are made this much longer at a time."""


@dataclass(frozen=True)
class Step:
    """What one forward computed.

    Shapes:
        logits: [sequences, vocab] float32, of each one's next token.
        prompt_logits: [prompt's tokens, vocab] float32 on the host, of the one prompt computed.
    """

    sequences: tuple[RunningSequence, ...]
    logits: Tensor
    prompt_logits: Tensor | None = None


class Batch:
    """Sequences that are computed together; they join and leave between two steps.

    Args:
        model: continues embeddings.
        device: where it runs.
        max_num_seqs: how many sequences there may be.

    Raises:
        EngineUnavailableError: some layers keep something else than keys and values.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, max_num_seqs: int) -> None:
        self.sequences: list[RunningSequence] = []
        """By slot."""
        self.max_num_seqs = max_num_seqs
        self.max_cached_tokens = 0
        """Slots times their length at most."""
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._device = device
        self._cache = SlotKVCache(model.config)
        # What the next step computes, where it is on the device already.
        self._token_ids: Tensor | None = None
        self._positions: Tensor | None = None

    @property
    def vocab_size(self) -> int:
        """Tokens that the model can look up."""
        return len(cast("Tensor", self._embedding.weight))

    def measure_token(self) -> int:
        """Run one token through the model, and give the bytes that a cached token takes."""
        self._cache.reserve(1, 1, num_used=0)
        self._prefill([self._lookup([0])])
        return self._cache.bytes_per_token

    def has_room(self, newcomers: Sequence[RunningSequence]) -> bool:
        """Whether more sequences can join, each to become as long as it may."""
        num_slots, length = self._size_with(newcomers)
        return num_slots <= self.max_num_seqs and num_slots * length <= self.max_cached_tokens

    def join(self, requests: Sequence[Sequence[RunningSequence]]) -> Step:
        """Compute the prompts of requests, whose answers run with the rest from now on.

        Args:
            requests: the answers of each, which share its prompt. One that asks for its prompt's
                logits must come alone.
        """
        leaders = [answers[0] for answers in requests]
        newcomers = [*leaders, *(answer for answers in requests for answer in answers[1:])]
        self._reserve(newcomers)
        prompts = [self._embed(sequence.request) for sequence in leaders]
        logits, all_logits = self._prefill(prompts, keeps_all=leaders[0].wants_prompt_logits)
        first_slot = len(self.sequences)
        leader_of = {id(answer): row for row, answers in enumerate(requests) for answer in answers}
        rows = [leader_of[id(sequence)] for sequence in newcomers]
        for slot, row in enumerate(rows[len(leaders) :], start=first_slot + len(leaders)):
            self._cache.copy(first_slot + row, slot, len(prompts[row]))
        self.sequences += newcomers
        self._token_ids = None
        return Step(tuple(newcomers), logits[rows], all_logits)

    def decode(self) -> Step:
        """Compute the next token of every sequence."""
        lengths = [sequence.num_tokens for sequence in self.sequences]
        token_ids, positions = self._token_ids, self._positions
        if token_ids is None or positions is None:
            token_ids = torch.tensor([s.last_id for s in self.sequences], device=self._device)
            positions = torch.tensor(lengths, device=self._device) - 1
        mask = self._cache.decode(positions, max(lengths))
        logits = self._model(
            input_ids=token_ids[:, None],
            position_ids=positions[:, None],
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self._token_ids, self._positions = None, positions + 1
        return Step(tuple(self.sequences), logits.float())

    def go_on_from(self, token_ids: Tensor) -> None:
        """Decode these next, which saves their way to the host and back.

        Shapes:
            token_ids: [sequences] int64, the last token of each.
        """
        self._token_ids = token_ids

    def forget(self, sequence: RunningSequence) -> None:
        """Wipe the slot of a sequence whose numbers are damaged."""
        self._cache.clear(self.sequences.index(sequence))

    def clear(self) -> tuple[RunningSequence, ...]:
        """Let all sequences leave, and give them back."""
        left = tuple(self.sequences)
        self.sequences.clear()
        self._token_ids = None
        return left

    def keep(self, still_runs: Callable[[RunningSequence], bool]) -> None:
        """Let the other sequences leave; the last ones move into their slots."""
        for slot in reversed(range(len(self.sequences))):
            if still_runs(self.sequences[slot]):
                continue
            self._token_ids = None
            last = self.sequences.pop()
            if slot < len(self.sequences):
                self._cache.copy(len(self.sequences), slot, last.num_tokens)
                self.sequences[slot] = last

    def _size_with(self, newcomers: Sequence[RunningSequence]) -> tuple[int, int]:
        sequences = [*self.sequences, *newcomers]
        return len(sequences), max(sequence.max_num_tokens for sequence in sequences)

    def _reserve(self, newcomers: Sequence[RunningSequence]) -> None:
        num_slots, length = self._size_with(newcomers)
        if num_slots <= self._cache.num_slots and length <= self._cache.slot_length:
            return
        # Slots double, so that arrivals one by one move the others only now and then.
        doubled = min(1 << (num_slots - 1).bit_length(), self.max_num_seqs)
        rounded = -(-length // _COLUMN_STEP) * _COLUMN_STEP
        for sizes in ((doubled, rounded), (num_slots, rounded), (num_slots, length)):
            if sizes[0] * sizes[1] <= self.max_cached_tokens:
                break
        self._cache.reserve(*sizes, num_used=len(self.sequences))

    def _prefill(
        self, prompts: list[Tensor], *, keeps_all: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Compute prompts for the slots after the running ones.

        Shapes:
            prompts: [tokens, hidden_size] each.
            results: [prompts, vocab] float32, of the first token after each, and with
                ``keeps_all`` [tokens, vocab] of the first prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        # Padded on the right: no token looks ahead, so none sees the padding.
        padded = [pad(prompt, (0, 0, 0, longest - len(prompt))) for prompt in prompts]
        ends = sorted({length - 1 for length in lengths})
        kept = range(longest) if keeps_all else ends
        self._cache.prefill(len(self.sequences))
        logits = self._model(
            inputs_embeds=torch.stack(padded),
            position_ids=torch.arange(longest, device=self._device).expand(len(prompts), -1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=self._device),
        ).logits.float()
        columns = [kept.index(length - 1) for length in lengths]
        last = logits[range(len(prompts)), columns]
        return last, to_host(logits[0, : lengths[0]]) if keeps_all else None

    def _embed(self, request: EngineRequest) -> Tensor:
        """Look up a prompt's tokens and put image rows in their spans.

        Shapes:
            result: [tokens, hidden_size].
        """
        embeddings = self._lookup(request.prompt.token_ids)
        for span in request.prompt.spans:
            rows = request.rows[span.image]
            last_row = span.first_row + span.stop - span.start
            embeddings[span.start : span.stop] = rows[span.first_row : last_row].to(embeddings)
        return embeddings

    def _lookup(self, token_ids: Sequence[int]) -> Tensor:
        embeddings: Tensor = self._embedding(torch.tensor(token_ids, device=self._device))
        return embeddings
