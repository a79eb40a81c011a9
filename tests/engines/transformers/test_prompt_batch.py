from __future__ import annotations

import torch
from engine_requests import CPU

from vlcore.engines.base import EngineRequest
from vlcore.engines.transformers.prompt_batch import PromptBatch, pad_positions
from vlcore.language.prompt_inputs import PromptInputs
from vlcore.prompts.tokenization import Span, TokenizedPrompt


def test_positions_are_steps_by_default() -> None:
    assert pad_positions([PromptInputs()] * 2, [range(3), range(2)]).tolist() == [[0, 1, 2]] * 2


def test_prompts_have_as_many_axes_as_any_of_them() -> None:
    stated = PromptInputs(torch.tensor([[0, 5], [0, 6], [0, 7]]))
    padded = pad_positions([PromptInputs(), stated], [range(3), range(2)])
    assert padded.shape == (3, 2, 3)
    assert padded[:, 0].tolist() == [[0, 1, 2]] * 3
    assert padded[:, 1, :2].tolist() == [[0, 5], [0, 6], [0, 7]]


def test_a_single_axis_needs_no_dimension() -> None:
    padded = pad_positions(
        [PromptInputs(torch.tensor([[1, 2]])), PromptInputs()], [range(2), range(3)]
    )
    assert padded[0, :2].tolist() == [1, 2]
    assert padded[1].tolist() == [0, 1, 2]


def test_positions_of_a_part_begin_where_it_does() -> None:
    stated = PromptInputs(torch.tensor([[0, 5, 8], [0, 6, 9]]))
    padded = pad_positions([PromptInputs(), stated], [range(4, 7), range(1, 3)])
    assert padded[:, 0].tolist() == [[4, 5, 6]] * 2
    assert padded[:, 1, :2].tolist() == [[5, 8], [6, 9]]


def test_parts_hold_the_embeddings_and_what_is_added_at_their_columns() -> None:
    rows = torch.arange(10.0, 26.0).reshape(4, 4)  # two numbers and two that are added
    prompt = TokenizedPrompt((1, 0, 0, 2, 0, 0), (Span(1, 3, 0, 0), Span(4, 6, 0, 2)))
    asked = EngineRequest(prompt, (rows,))
    for columns in (range(6), range(2, 5), range(2), range(3, 4)):
        batch = PromptBatch([asked], [columns], torch.nn.Embedding(3, 2).requires_grad_(False), CPU)
        inputs = batch.model_inputs()
        row_of = {1: rows[0], 2: rows[1], 4: rows[2], 5: rows[3]}
        is_image = [column in row_of for column in columns]
        embeddings = [row_of[column] for column in columns if column in row_of]
        embedded = inputs["inputs_embeds"][0][torch.tensor(is_image)]
        assert embedded.tolist() == [row[:2].tolist() for row in embeddings]
        if embeddings:
            assert inputs["visual_pos_masks"][0].tolist() == is_image
            added = inputs["deepstack_visual_embeds"][0]
            assert added.tolist() == [row[2:].tolist() for row in embeddings]


def test_groups_reach_up_to_the_last_column() -> None:
    groups = PromptInputs(attention_groups=torch.tensor([-1, 0, 0, -1]))
    asked = [
        EngineRequest(TokenizedPrompt((1, 1, 1, 1)), inputs=groups),
        EngineRequest(TokenizedPrompt((1, 1))),
    ]
    embed = torch.nn.Embedding(3, 2)
    padded = PromptBatch(asked, [range(1, 3), range(2)], embed, CPU).attention_groups()
    assert padded is not None
    assert padded.tolist() == [[-1, 0, 0], [-1, -1, -1]]
