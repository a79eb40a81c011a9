"""``PromptChunk``: the part of a prompt that one forward pass computes."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlcore.engines.transformers.prefix import Prefix
from vlcore.engines.transformers.sequence import SequenceGroup, TransformersSequence


@dataclass(frozen=True)
class PromptChunk:
    """The part of a prompt that one forward pass computes."""

    group: SequenceGroup
    """The answers to the prompt. The first one's keys and values are computed, and copied to the
    others when the prompt is complete."""
    columns: range
    """The columns of the cache that are computed, which are the positions in the prompt."""
    prefix: Prefix = field(default_factory=Prefix)
    """Where the columns before them are copied from, unless they are computed already."""

    @property
    def first(self) -> TransformersSequence:
        """The first answer."""
        return self.group[0]

    @property
    def is_last(self) -> bool:
        """Whether the prompt is complete after the forward pass."""
        return self.columns.stop == self.first.num_prompt_tokens
