from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine_requests import CPU
from tiny_families import config_of
from transformers import MistralConfig, PretrainedConfig, Qwen2Config

from vlcore.engines.transformers.attention_masks import FULL, SLIDING, AttentionMasks
from vlcore.engines.transformers.cache_layer import AttentionCall
from vlcore.engines.transformers.strided_rows import StridedRows
from vlcore.errors import EngineUnavailableError

MISTRAL = MistralConfig(num_hidden_layers=2, sliding_window=2)
SOME_SLIDE = Qwen2Config(
    num_hidden_layers=2, use_sliding_window=True, sliding_window=2, max_window_layers=1
)


def llama(**options: Any) -> PretrainedConfig:
    config: PretrainedConfig = config_of("llama", num_hidden_layers=2, **options)
    return config


def masks_of(config: PretrainedConfig, *, is_eager: bool = False) -> AttentionMasks:
    return AttentionMasks(config, torch.bfloat16, CPU, is_eager=is_eager)


def shown(calls: Sequence[AttentionCall]) -> list[str]:
    """Return a line for each query, with a mark where it attends to a column."""
    lines: list[list[bool]] = []
    for call in calls:
        assert call.mask is not None
        assert call.mask.shape[-1] == call.length
        is_added = call.mask.dtype != torch.bool
        is_seen = call.mask == 0 if is_added else call.mask
        lines += is_seen.reshape(-1, call.length).tolist()
    return ["".join("x" if one else "." for one in line) for line in lines]


def rows(start: int, num: int, stride: int = 0, first: int = 0) -> StridedRows:
    return StridedRows(slice(first, first + num), start, stride)


def test_tokens_of_equally_long_sequences_attend_to_all_columns() -> None:
    groups = [rows(0, 2, 64), rows(300, 1, first=2)]
    calls = masks_of(llama()).next_tokens(groups, [4, 4, 7])[FULL]
    assert calls == [
        AttentionCall(slice(0, 2), 0, 64, 4),
        AttentionCall(slice(2, 3), 300, 0, 7),
    ]


def test_padded_tokens_attend_to_those_of_their_own_sequence() -> None:
    (call,) = masks_of(llama()).next_tokens([rows(0, 2, 64)], [4, 1])[FULL]
    assert call.mask is not None
    assert call.mask.shape == (2, 1, 1, 4)
    assert shown([call]) == ["xxxx", "x..."]


def test_a_sliding_window_reads_no_distant_columns() -> None:
    masks = masks_of(MISTRAL)
    calls = masks.next_tokens([rows(64, 1), rows(200, 1, first=1)], [9, 1])[SLIDING]
    assert calls == [
        AttentionCall(slice(0, 1), 71, 0, 2),
        AttentionCall(slice(1, 2), 200, 0, 1),
    ]
    (call,) = masks.next_tokens([rows(64, 2, 64)], [9, 7])[SLIDING]
    assert (call.start, call.length) == (69, 4)
    assert shown([call]) == ["..xx", "xx.."]


def test_each_type_of_layers_has_its_calls() -> None:
    calls = masks_of(SOME_SLIDE).next_tokens([rows(0, 2, 64)], [3, 2])
    assert shown(calls[FULL]) == ["xxx", "xx."]
    assert shown(calls[SLIDING]) == [".xx", "xx."]


def test_layers_with_states_have_no_calls() -> None:
    masks = masks_of(llama(layer_types=["conv", FULL]))
    assert list(masks.next_tokens([rows(0, 1)], [2])) == [FULL]
    assert isinstance(masks.placeholder, dict)
    assert masks.placeholder["conv"] is None


def test_whole_prompts_need_no_mask_unless_they_are_longer_than_a_window() -> None:
    assert masks_of(llama()).whole_prompts([3, 2], None)[FULL][0].mask is None
    assert masks_of(MISTRAL).whole_prompts([2, 1], None)[SLIDING][0].mask is None
    calls = masks_of(SOME_SLIDE).whole_prompts([3, 2], None)
    assert calls[FULL] == (AttentionCall(slice(0, 2), 0, 0, 3),)
    # A padded query attends to what the last one does.
    assert shown(calls[SLIDING]) == ["x..", "xx.", ".xx", "x..", "xx.", "xx."]


def test_tokens_of_a_group_attend_to_each_other_within_a_sliding_window() -> None:
    groups = torch.tensor([[-1, 0, 0, 0, -1], [0, 0, -1, 1, 1]])
    calls = masks_of(SOME_SLIDE).whole_prompts([5, 5], groups)
    assert shown(calls[FULL]) == [
        *("x....", "xxxx.", "xxxx.", "xxxx.", "xxxxx"),
        *("xx...", "xx...", "xxx..", "xxxxx", "xxxxx"),
    ]
    assert shown(calls[SLIDING]) == [
        *("x....", "xxxx.", ".xxx.", "..xx.", "...xx"),
        *("xx...", "xx...", ".xx..", "..xxx", "...xx"),
    ]


def test_parts_of_prompts_attend_to_the_columns_before_them() -> None:
    calls = masks_of(SOME_SLIDE).prompt_chunks([64, 128], [range(2, 5), range(1)], None)
    assert [(one.start, one.length) for one in calls[FULL]] == [(64, 5), (128, 1)]
    assert shown(calls[FULL][:1]) == ["xxx..", "xxxx.", "xxxxx"]
    assert shown(calls[FULL][1:]) == ["x", "x", "x"]  # padding too
    assert [(one.start, one.length) for one in calls[SLIDING]] == [(65, 4), (128, 1)]
    assert shown(calls[SLIDING][:1]) == ["xx..", ".xx.", "..xx"]


def test_a_part_of_a_prompt_attends_to_its_group() -> None:
    groups = torch.tensor([[-1, -1, -1, 0, 0, 0, -1]])
    calls = masks_of(SOME_SLIDE).prompt_chunks([0], [range(2, 7)], groups)
    assert shown(calls[FULL]) == ["xxx....", "xxxxxx.", "xxxxxx.", "xxxxxx.", "xxxxxxx"]
    assert shown(calls[SLIDING]) == ["xx....", ".xxxx.", "..xxx.", "...xx.", "....xx"]


def test_eager_attention_adds_the_lowest_number() -> None:
    masks = masks_of(llama(), is_eager=True)
    lowest = torch.finfo(torch.bfloat16).min
    (call,) = masks.next_tokens([rows(0, 2, 64)], [2, 1])[FULL]
    assert call.mask is not None
    assert call.mask.dtype == torch.bfloat16
    assert call.mask.flatten().tolist() == [0, 0, 0, lowest]
    (call,) = masks.whole_prompts([2], None)[FULL]
    assert call.mask is not None
    assert call.mask.flatten().tolist() == [0, lowest, 0, 0]


def test_layers_of_another_type_are_refused() -> None:
    config = llama()
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(EngineUnavailableError, match="this model has chunked_attention"):
        masks_of(config)
