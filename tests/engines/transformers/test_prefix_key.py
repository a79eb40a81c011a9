"""What two prompts must have in common to share their keys and values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from engine_requests import request

from vlcore.engines.base import EngineRequest
from vlcore.engines.transformers.cuts import group_columns, last_cut, next_cut
from vlcore.engines.transformers.prefix_key import PrefixKey, common_length
from vlcore.errors import EngineError
from vlcore.language.prompt_inputs import PromptInputs
from vlcore.prompts.tokenization import Span, TokenizedPrompt


def image_request(
    key: str | None, token_ids: tuple[int, ...] = (1, 0, 0, 2, 0, 0, 3)
) -> EngineRequest:
    """A prompt with an image of four embeddings, divided by a token."""
    spans = (Span(1, 3, 0, 0), Span(4, 6, 0, 2))
    return EngineRequest(TokenizedPrompt(token_ids, spans), (torch.zeros(4, 8),), row_keys=(key,))


def shared(first: EngineRequest, second: EngineRequest) -> int:
    return common_length(PrefixKey(first).elements, PrefixKey(second).elements)


def test_the_common_length_of_any_lists() -> None:
    for length in range(70):
        one = list(range(70))
        other = [*range(length), *(-value for value in range(length, 66))]
        other[length:] = [value - 1 for value in other[length:]]
        assert common_length(one, other) == min(length, len(other))
    assert common_length([], [1]) == common_length([1], []) == common_length([1], [2]) == 0


def test_text_is_compared_by_its_tokens() -> None:
    one = request(12, seed=1)
    other = EngineRequest(TokenizedPrompt((*one.prompt.token_ids[:7], 1, 2)))
    assert shared(one, other) == 7
    assert shared(one, one) == 12


def test_images_are_compared_by_the_keys_of_their_content() -> None:
    assert shared(image_request("a"), image_request("a")) == 7
    assert shared(image_request("a"), image_request("b")) == 1
    assert shared(image_request("a"), image_request("a", (1, 0, 0, 2, 0, 0, 4))) == 6


def test_images_without_a_key_are_not_shared() -> None:
    asked = image_request(None)
    assert shared(asked, asked) == 1
    assert shared(replace(asked, row_keys=()), replace(asked, row_keys=())) == 1


def test_an_embedding_is_not_mistaken_for_a_token() -> None:
    text = EngineRequest(TokenizedPrompt((1, 0, 0, 2, 0, 0, 3)))
    assert shared(image_request("a"), text) == 1


def test_another_part_of_the_same_image_is_not_shared() -> None:
    asked = image_request("a")
    swapped = TokenizedPrompt(asked.prompt.token_ids, (Span(1, 3, 0, 2), Span(4, 6, 0, 0)))
    assert shared(asked, replace(asked, prompt=swapped)) == 1


def test_keys_for_some_images_only_are_refused() -> None:
    with pytest.raises(EngineError, match="a key, or None, for each of the 1 images"):
        replace(image_request("a"), row_keys=("a", "b"))


def test_positions_are_compared() -> None:
    prompt = TokenizedPrompt((1, 2, 3, 4))
    usual = EngineRequest(prompt)
    positions = torch.tensor([[0, 1, 2, 3]] * 3)
    same = EngineRequest(prompt, inputs=PromptInputs(positions))
    assert shared(usual, same) == 4
    positions = positions.clone()
    positions[1, 2] = 1
    assert shared(usual, EngineRequest(prompt, inputs=PromptInputs(positions))) == 2


def test_an_answer_that_becomes_part_of_a_prompt_keeps_its_elements() -> None:
    positions = torch.tensor([[0, 1, 1, 2], [0, 1, 2, 3]])
    asked = EngineRequest(TokenizedPrompt((1, 2, 3, 4)), inputs=PromptInputs(positions, -1))
    elements = PrefixKey(asked).with_answer([5, 6])
    longer = torch.cat([positions, torch.tensor([[3, 4], [3, 4]])], dim=1)
    turn = EngineRequest(TokenizedPrompt((1, 2, 3, 4, 5, 6)), inputs=PromptInputs(longer, -1))
    assert PrefixKey(turn).elements == elements
    shifted = PromptInputs(longer + torch.tensor([0, 0, 0, 0, 0, 1]), 0)
    assert shared(turn, replace(turn, inputs=shifted)) == 5


def test_attention_groups_are_compared_with_their_extent() -> None:
    prompt = TokenizedPrompt((1, 2, 3, 4, 5))
    one = EngineRequest(
        prompt, inputs=PromptInputs(attention_groups=torch.tensor([-1, 0, 0, -1, -1]))
    )
    longer = EngineRequest(
        prompt, inputs=PromptInputs(attention_groups=torch.tensor([-1, 0, 0, 0, -1]))
    )
    assert shared(one, one) == 5
    assert shared(one, longer) == shared(one, EngineRequest(prompt)) == 1


def test_a_prompt_is_not_cut_within_a_group() -> None:
    groups = list(group_columns(torch.tensor([-1, 0, 0, 0, 1, 1, -1, 2])).values())
    assert groups == [range(1, 4), range(4, 6), range(7, 8)]
    assert [last_cut(groups, column) for column in range(9)] == [0, 1, 1, 1, 4, 4, 6, 7, 8]
    assert [next_cut(groups, column) for column in range(9)] == [0, 1, 4, 4, 4, 6, 6, 7, 8]


def test_groups_that_enclose_each_other_are_not_cut() -> None:
    groups = list(group_columns(torch.tensor([0, 1, 0, 1, 2])).values())
    assert [last_cut(groups, column) for column in range(6)] == [0, 0, 0, 0, 4, 5]
    assert [next_cut(groups, column) for column in range(6)] == [0, 4, 4, 4, 4, 5]
