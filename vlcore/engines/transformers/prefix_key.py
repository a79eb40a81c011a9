"""``PrefixKey``: what the keys and values of a sequence depend on, token by token."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

from vlcore.engines.base import EngineRequest
from vlcore.engines.transformers.cuts import group_columns

_T = TypeVar("_T")


class PrefixKey:
    """The elements of a sequence, one for each token or image embedding.

    Where two sequences begin with equal elements, their keys and values are equal too, as long as
    no attention group is cut. An element is the id of a token, or the key of an image's content
    and the index of the embedding. Where a prompt states other positions than 0, 1, 2 … or
    attention groups, they are part of its elements.

    Args:
        request: the request. Embeddings of an image without a key are equal to no others.
    """

    def __init__(self, request: EngineRequest) -> None:
        prompt, inputs = request.prompt, request.inputs
        elements: list[Hashable] = list(prompt.token_ids)
        keys: list[Hashable] = [
            object() if key is None else key
            for key in request.row_keys or [None] * len(request.rows)
        ]
        for span in prompt.spans:
            for column in range(span.start, span.stop):
                elements[column] = (keys[span.image], span.first_row + column - span.start)
        if inputs.position_ids is not None:
            for column, position in enumerate(inputs.position_ids.T.tolist()):
                offsets = [axis - column for axis in position]
                elements[column] = _with_offset(elements[column], offsets)
        if inputs.attention_groups is not None:
            columns_of = group_columns(inputs.attention_groups)
            for column, group in enumerate(inputs.attention_groups.tolist()):
                if group >= 0:
                    elements[column] = (elements[column], columns_of[group])
        self.elements = elements
        """Those of the prompt."""
        self._rope_delta = inputs.rope_delta

    def with_answer(self, token_ids: Sequence[int]) -> list[Hashable]:
        """Return the elements of the prompt and of generated tokens."""
        return [*self.elements, *(_with_offset(token, [self._rope_delta]) for token in token_ids)]


def common_length(first: Sequence[_T], second: Sequence[_T]) -> int:
    """Return the number of elements at the beginning of two lists that are equal."""
    equal, length = 0, min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    while length - equal > 1:  # the first ``equal`` are equal, and the first ``length`` are not
        middle = (equal + length) // 2
        if first[equal:middle] == second[equal:middle]:
            equal = middle
        else:
            length = middle
    return equal


def _with_offset(element: Hashable, offsets: Sequence[int]) -> Hashable:
    """Add the distances between a token's position on each axis and its column, unless all are 0.

    A single distance stands for the same one on all axes.
    """
    if len(set(offsets)) > 1:
        return (element, tuple(offsets))
    return (element, offsets[0]) if offsets[0] else element
