"""``PrefillScheduler``: decides which prompts the next forward pass computes."""

from __future__ import annotations

from itertools import chain

from vlcore.engines.transformers.batch import Batch
from vlcore.engines.transformers.cuts import last_cut, next_cut
from vlcore.engines.transformers.prefill_pace import PrefillPace
from vlcore.engines.transformers.prefix import Prefix
from vlcore.engines.transformers.prefix_key import common_length
from vlcore.engines.transformers.prompt_chunk import PromptChunk
from vlcore.engines.transformers.sequence import SequenceGroup, TransformersSequence
from vlcore.engines.transformers.waiting_queue import WaitingQueue

_WORTH_WAITING_FOR = 32
"""A prompt waits for the next step if it can then reuse at least so many more tokens."""


class PrefillScheduler:
    """Takes prompts from the queue, in order, and cuts long ones into chunks.

    A forward pass computes several whole prompts, padded to the longest one, or a chunk of one.
    While a long prompt is computed chunk by chunk, every other forward pass is for the prompts that
    wait, if they fit into one.

    Args:
        waiting: the requests that wait.
        batch: the running sequences.
        max_tokens: maximum number of tokens in a forward pass, including padding. While answers are
            running it is lower, so that they do not wait for longer than a few decoding steps.
    """

    def __init__(self, waiting: WaitingQueue, batch: Batch, max_tokens: int) -> None:
        self.pace = PrefillPace()
        self._waiting = waiting
        self._batch = batch
        self._max_tokens = max_tokens
        self._is_turn_of_others = False

    def next_chunks(self) -> list[PromptChunk]:
        """Return what the next forward pass computes, or nothing if there is nothing to do."""
        limit = self._max_tokens
        if self._batch.sequences:
            limit = self.pace.max_tokens(limit)
        partial = self._batch.partial
        if partial is None:
            self._is_turn_of_others = True  # if the first of these chunks does not end its prompt
            return self._take(limit)
        if self._is_turn_of_others and (chunks := self._take(limit)):
            self._is_turn_of_others = False
            return chunks
        self._is_turn_of_others = True
        return [self._chunk(partial, partial[0].num_computed, limit)]

    def _take(self, limit: int) -> list[PromptChunk]:
        """Take prompts from the queue for which there is room."""
        chunks: list[PromptChunk] = []

        def fits(groups: list[SequenceGroup]) -> bool:
            """Return whether the last group fits, and add its chunk to the others."""
            group = groups[-1]
            if not self._batch.has_room(list(chain.from_iterable(groups))):
                return False
            prefix = self._batch.find_prefix(group[0])
            if self._should_wait(group[0], prefix, chunks):
                return False
            chunk = self._chunk(group, prefix.length, limit, prefix)
            if self._batch.partial is not None and not chunk.is_last:
                return False
            if chunks and not self._fit_together([*chunks, chunk], limit):
                return False
            chunks.append(chunk)
            return True

        self._waiting.take(fits)
        return chunks

    def _should_wait(
        self, sequence: TransformersSequence, prefix: Prefix, chunks: list[PromptChunk]
    ) -> bool:
        """Return whether a prompt can soon reuse much of one that is about to be computed."""
        if sequence.prefix_key is None or sequence.wants_prompt_logits:
            return False
        elements = sequence.prefix_key.elements
        partial = () if self._batch.partial is None else self._batch.partial[:1]
        for other in [*(chunk.first for chunk in chunks), *partial]:
            if other.prefix_key is None:
                continue
            length = common_length(other.prefix_key.elements, elements)
            num_more = Prefix(length).for_prompt(sequence).length - prefix.length
            num_left = sequence.num_prompt_tokens - prefix.length
            least = num_left // 2 if other in partial else 0
            if num_more >= max(_WORTH_WAITING_FOR, least):
                return True
        return False

    def _fit_together(self, chunks: list[PromptChunk], limit: int) -> bool:
        lengths = {len(chunk.columns) for chunk in chunks}
        if not all(chunk.is_last for chunk in chunks) or max(lengths) * len(chunks) > limit:
            return False
        if self._batch.needs_whole_prompts and len(lengths) > 1:
            return False
        return not any(chunk.first.wants_prompt_logits for chunk in chunks)

    def _chunk(
        self, group: SequenceGroup, start: int, limit: int, prefix: Prefix | None = None
    ) -> PromptChunk:
        """Return the next chunk of a prompt, which cuts no attention group."""
        first = group[0]
        stop = first.num_prompt_tokens
        if stop - start > limit and not self._batch.needs_whole_prompts:
            stop = last_cut(first.attention_groups, start + limit)
            if stop <= start:
                stop = next_cut(first.attention_groups, start + 1)
        return PromptChunk(group, range(start, stop), prefix or Prefix())
