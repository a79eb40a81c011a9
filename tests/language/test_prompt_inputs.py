from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from vlcore import PromptInputs, Span, TokenizedPrompt, grid_positions, image_groups
from vlcore.errors import PluginContractError
from vlcore.language.prompt_inputs import whole_prompt_group


def prompt_of(*parts: int | tuple[int, int]) -> TokenizedPrompt:
    """Create a prompt of text lengths and of runs (number of embeddings, image)."""
    num_tokens = 0
    num_rows: dict[int, int] = {}
    spans = []
    for part in parts:
        if isinstance(part, int):
            num_tokens += part
            continue
        length, image = part
        first_row = num_rows.get(image, 0)
        spans.append(Span(num_tokens, num_tokens + length, image, first_row))
        num_rows[image] = first_row + length
        num_tokens += length
    return TokenizedPrompt((0,) * num_tokens, tuple(spans))


def positions(inputs: PromptInputs) -> list[list[int]]:
    assert inputs.position_ids is not None
    axes: list[list[int]] = inputs.position_ids.tolist()
    return axes


def test_an_image_begins_where_a_token_would_and_text_follows_its_highest_position() -> None:
    inputs = grid_positions(prompt_of(2, (6, 0), 2), [(1, 2, 3)])
    assert positions(inputs) == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    assert inputs.rope_delta == 7 - 10


def test_each_run_of_an_image_begins_where_a_token_would() -> None:
    inputs = grid_positions(prompt_of((2, 0), 1, (2, 0)), [(2, 1, 2)])
    assert positions(inputs) == [[0, 0, 2, 3, 3], [0, 0, 2, 3, 3], [0, 1, 2, 3, 4]]
    assert inputs.rope_delta == 0


def test_a_prompt_without_images_has_the_usual_positions() -> None:
    inputs = grid_positions(prompt_of(3), [])
    assert positions(inputs) == [[0, 1, 2]] * 3
    assert inputs.rope_delta == 0


def test_runs_without_embeddings_change_nothing() -> None:
    inputs = grid_positions(prompt_of(1, (0, 0), 1, (1, 1), 1), [(0, 2, 2), (1, 1, 1)])
    assert positions(inputs) == [[0, 1, 2, 3]] * 3


def test_positions_match_those_of_transformers() -> None:
    vision = {"depth": 1, "hidden_size": 8, "num_heads": 1, "intermediate_size": 8}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 16}
    with torch.device("meta"):
        model: Any = Qwen2_5_VLModel(Qwen2_5_VLConfig(vision_config=vision, text_config=text))
    grids = [(1, 2, 3), (1, 5, 1), (1, 4, 4)]
    prompt = prompt_of(3, (6, 0), (5, 1), 4, (16, 2), 2)
    kinds = torch.zeros(1, len(prompt.token_ids), dtype=torch.int64)
    for span in prompt.spans:
        kinds[0, span.start : span.stop] = 1
    # transformers takes neighbouring images for one, so that they need a token between them.
    kinds = torch.cat([kinds[:, :9], torch.zeros(1, 1, dtype=torch.int64), kinds[:, 9:]], dim=1)
    prompt = prompt_of(3, (6, 0), 1, (5, 1), 4, (16, 2), 2)
    expected, delta = model.get_rope_index(
        torch.zeros_like(kinds), kinds, torch.tensor(grids) * torch.tensor([1, 2, 2])
    )
    inputs = grid_positions(prompt, grids)
    assert positions(inputs) == expected[:, 0].tolist()
    assert inputs.rope_delta == int(delta)


def test_positions_of_videos_match_those_of_transformers() -> None:
    vision = {"depth": 1, "hidden_size": 8, "num_heads": 1, "intermediate_size": 8}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 16}
    with torch.device("meta"):
        model: Any = Qwen2_5_VLModel(Qwen2_5_VLConfig(vision_config=vision, text_config=text))
    grids = [(5, 2, 3), (1, 4, 1), (3, 1, 2)]
    seconds = torch.tensor([0.7, 1 / 3])
    prompt = prompt_of(3, (30, 0), 1, (4, 1), 2, (6, 2), 4)
    kinds = torch.zeros(1, len(prompt.token_ids), dtype=torch.int64)
    for span in prompt.spans:
        kinds[0, span.start : span.stop] = 1 if span.image == 1 else 2
    patches = torch.tensor(grids) * torch.tensor([1, 2, 2])
    expected, delta = model.get_rope_index(
        torch.zeros_like(kinds), kinds, patches[1:2], patches[::2], seconds
    )
    steps = [model.config.vision_config.tokens_per_second * float(step) for step in seconds]
    inputs = grid_positions(prompt, grids, time_steps=[steps[0], 1, steps[1]], passes_time=False)
    assert positions(inputs) == expected[:, 0].tolist()
    assert inputs.rope_delta == int(delta)


def test_text_follows_the_last_frame_of_a_video_in_time_by_default() -> None:
    inputs = grid_positions(prompt_of(1, (3, 0), 1), [(3, 1, 1)], time_steps=[2.5])
    assert positions(inputs)[0] == [0, 1, 3, 6, 7]
    assert inputs.rope_delta == 8 - 5


@pytest.mark.parametrize(
    "grids", [[], [(1, 2, 2)], [(1, 2, 3), (1, 1, 1)], [(2, 3)], [(1, 2, 3, 1)]]
)
def test_grids_of_other_images_are_refused(grids: list[tuple[int, ...]]) -> None:
    with pytest.raises(PluginContractError, match=r"image [01] has [06] embeddings .* grid"):
        grid_positions(prompt_of(1, (6, 0)), grids)


def test_the_embeddings_of_an_image_are_a_group_for_each_run() -> None:
    prompt = prompt_of(1, (2, 0), (1, 0), 1, (2, 0), (2, 1), 1)
    assert image_groups(prompt).tolist() == [-1, 0, 0, 0, -1, 1, 1, 2, 2, -1]


def test_a_whole_prompt_is_one_group() -> None:
    assert whole_prompt_group(prompt_of(1, (2, 0))).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"position_ids": [[0, 1]]}, r"position_ids must be a tensor \[axes, tokens\]"),
        ({"position_ids": torch.zeros(2, dtype=torch.int64)}, r"\[axes, tokens\] .*it has \[2\]"),
        ({"position_ids": torch.zeros(0, 2, dtype=torch.int64)}, r"it has \[0, 2\]"),
        ({"position_ids": torch.zeros(3, 2)}, "dtype int64; .* float32"),
        ({"position_ids": torch.tensor([[0, -1]])}, "at least 0; one is -1"),
        ({"attention_groups": torch.zeros(1, 2, dtype=torch.int64)}, r"\[tokens\] .*\[1, 2\]"),
        ({"attention_groups": torch.tensor([-2])}, "at least -1; one is -2"),
        ({"rope_delta": 1.0}, "rope_delta must be an integer; it is float"),
    ],
)
def test_malformed_inputs_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginContractError, match=message):
        PromptInputs(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"position_ids": torch.zeros(3, 4, dtype=torch.int64)}, "5 columns, .* they have 4"),
        ({"attention_groups": torch.zeros(6, dtype=torch.int64)}, "5 columns, .* they have 6"),
        ({"position_ids": torch.full((1, 5), 9)}, r"must be in 0\.\.8; the highest one is 9"),
        ({"rope_delta": 4}, "first generated token has 9"),
        ({"rope_delta": -6}, "first generated token has -1"),
    ],
)
def test_inputs_of_another_prompt_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginContractError, match=message):
        PromptInputs(**values).check(5, 8)


def test_the_features_that_inputs_need_are_named() -> None:
    assert PromptInputs().features == frozenset()
    assert PromptInputs(rope_delta=1).features == {"mrope"}
    both = PromptInputs(torch.tensor([[0]]), attention_groups=torch.tensor([-1]))
    assert both.features == {"mrope", "attention_groups"}
