from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_requests import CPU
from tiny_families import config_of
from transformers import MistralConfig, PretrainedConfig, Qwen2Config

from vlcore.engines.transformers.attention_masks import AttentionMasks
from vlcore.errors import EngineUnavailableError

MISTRAL = MistralConfig(num_hidden_layers=2, sliding_window=2)
SOME_SLIDE = Qwen2Config(
    num_hidden_layers=2, use_sliding_window=True, sliding_window=2, max_window_layers=1
)


def llama(**options: Any) -> PretrainedConfig:
    config: PretrainedConfig = config_of("llama", num_hidden_layers=2, **options)
    return config


def masks_of(config: PretrainedConfig) -> AttentionMasks:
    return AttentionMasks(config, torch.float32, CPU)


def shown(mask: Any) -> list[str]:
    """Return a line for each query, with a mark where it attends to a column."""
    assert isinstance(mask, torch.Tensor)
    lines = mask.reshape(-1, mask.shape[-1]).tolist()
    return ["".join("x" if is_seen else "." for is_seen in line) for line in lines]


def test_a_step_attends_to_the_tokens_of_its_own_sequence() -> None:
    mask = masks_of(llama()).next_token_masks(torch.tensor([3, 0]), longest=4)
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (2, 1, 1, 4)
    assert shown(mask) == ["xxxx", "x..."]


def test_a_sliding_window_masks_distant_tokens() -> None:
    mask = masks_of(MISTRAL).next_token_masks(torch.tensor([3, 1]), longest=4)
    assert shown(mask) == ["..xx", "xx.."]


def test_each_type_of_layers_has_its_mask() -> None:
    masks = masks_of(SOME_SLIDE).next_token_masks(torch.tensor([2]), longest=3)
    assert isinstance(masks, dict)
    assert shown(masks["full_attention"]) == ["xxx"]
    assert shown(masks["sliding_attention"]) == [".xx"]


def test_layers_with_states_have_no_mask() -> None:
    config = llama(layer_types=["conv", "full_attention"])
    masks = masks_of(config).next_token_masks(torch.tensor([1]), longest=2)
    assert isinstance(masks, dict)
    assert masks["conv"] is None
    assert shown(masks["full_attention"]) == ["xx"]


def test_prompts_without_groups_need_no_mask() -> None:
    assert masks_of(llama()).prompt_masks([range(3), range(2)], None) is None


def test_tokens_of_a_group_attend_to_each_other_within_a_sliding_window() -> None:
    groups = torch.tensor([[-1, 0, 0, 0, -1], [0, 0, -1, 1, 1]])
    masks = masks_of(SOME_SLIDE).prompt_masks([range(5)] * 2, groups)
    assert isinstance(masks, dict)
    assert shown(masks["full_attention"]) == [
        *("x....", "xxxx.", "xxxx.", "xxxx.", "xxxxx"),
        *("xx...", "xx...", "xxx..", "xxxxx", "xxxxx"),
    ]
    assert shown(masks["sliding_attention"]) == [
        *("x....", "xxxx.", ".xxx.", "..xx.", "...xx"),
        *("xx...", "xx...", ".xx..", "..xxx", "...xx"),
    ]


def test_a_part_of_a_prompt_attends_to_the_columns_before_it() -> None:
    masks = masks_of(SOME_SLIDE).prompt_masks([range(2, 5), range(1)], None)
    assert isinstance(masks, dict)
    mask = masks["full_attention"]
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (2, 1, 3, 5)
    assert shown(mask)[:4] == ["xxx..", "xxxx.", "xxxxx", "x...."]
    assert shown(masks["sliding_attention"])[:4] == [".xx..", "..xx.", "...xx", "x...."]
    assert all("x" in line for line in shown(masks["sliding_attention"]))  # padding too


def test_a_part_of_a_prompt_attends_to_its_group() -> None:
    groups = torch.tensor([[-1, -1, -1, 0, 0, 0, -1]])
    masks = masks_of(SOME_SLIDE).prompt_masks([range(2, 7)], groups)
    assert isinstance(masks, dict)
    assert shown(masks["full_attention"]) == [
        *("xxx....", "xxxxxx.", "xxxxxx.", "xxxxxx.", "xxxxxxx")
    ]
    assert shown(masks["sliding_attention"]) == [
        *(".xx....", "..xxxx.", "...xxx.", "....xx.", ".....xx")
    ]


def test_eager_attention_adds_the_lowest_number() -> None:
    config = llama(attn_implementation="eager")
    masks = AttentionMasks(config, torch.bfloat16, CPU)
    mask = masks.next_token_masks(torch.tensor([0]), longest=2)
    assert isinstance(mask, torch.Tensor)
    assert mask.dtype == torch.bfloat16
    assert mask.flatten().tolist() == [0, torch.finfo(torch.bfloat16).min]


def test_another_attention_is_refused() -> None:
    config = llama(attn_implementation="flex_attention")
    with pytest.raises(EngineUnavailableError, match=r"'sdpa' or 'eager'; .* 'flex_attention'"):
        masks_of(config)


def test_layers_of_another_type_are_refused() -> None:
    config = llama()
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(EngineUnavailableError, match="this model has chunked_attention"):
        masks_of(config)
