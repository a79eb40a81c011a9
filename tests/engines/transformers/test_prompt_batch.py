from __future__ import annotations

import torch

from vlcore.engines.transformers.prompt_batch import pad_positions
from vlcore.language.prompt_inputs import PromptInputs


def test_positions_are_steps_by_default() -> None:
    assert pad_positions([PromptInputs()] * 2, 3).tolist() == [[0, 1, 2]] * 2


def test_prompts_have_as_many_axes_as_any_of_them() -> None:
    stated = PromptInputs(torch.tensor([[0, 5], [0, 6], [0, 7]]))
    padded = pad_positions([PromptInputs(), stated], 3)
    assert padded.shape == (3, 2, 3)
    assert padded[:, 0].tolist() == [[0, 1, 2]] * 3
    assert padded[:, 1, :2].tolist() == [[0, 5], [0, 6], [0, 7]]


def test_a_single_axis_needs_no_dimension() -> None:
    padded = pad_positions([PromptInputs(torch.tensor([[1, 2]])), PromptInputs()], 3)
    assert padded[0, :2].tolist() == [1, 2]
    assert padded[1].tolist() == [0, 1, 2]
