from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from vlcore.engines.transformers.kv_cache import SlotKVCache
from vlcore.errors import EngineUnavailableError


def states(num_slots: int, length: int, value: float) -> torch.Tensor:
    """Keys or values of 2 heads of 4 numbers."""
    return torch.full((num_slots, 2, length, 4), value)


def cache(**options: Any) -> SlotKVCache:
    made = SlotKVCache(LlamaConfig(num_hidden_layers=2, **options))
    made.reserve(4, 8, num_used=0)
    return made


def write_prompts(slots: SlotKVCache, first: int, length: int, value: float) -> None:
    slots.prefill(first)
    for layer in range(2):
        given = states(2, length, value), states(2, length, -value)
        looked_at = slots.update(*given, layer)
        assert looked_at[0] is given[0]
        assert looked_at[1] is given[1]


def keys_of(slots: SlotKVCache, layer: int) -> torch.Tensor:
    keys: torch.Tensor = slots._layers[layer].keys
    return keys


def test_a_step_is_stored_at_its_position_and_attends_to_earlier_ones() -> None:
    slots = cache()
    write_prompts(slots, 0, 3, 1.0)
    slots.decode(torch.tensor([3, 1]), longest=4)  # the second prompt was padded by two
    for layer in range(2):
        keys, values = slots.update(states(2, 1, 5.0), states(2, 1, -5.0), layer)
        assert keys.shape == values.shape == (2, 2, 4, 4)
        assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 5]
        assert keys[1, 1, :, 3].tolist() == [1, 5, 1, 0]
        assert torch.equal(values, -keys)


def test_a_mask_shows_each_sequence_its_own_tokens() -> None:
    mask = cache().decode(torch.tensor([3, 0]), longest=4)
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (2, 1, 1, 4)
    assert mask[:, 0, 0].tolist() == [[True] * 4, [True, False, False, False]]


def test_a_sliding_window_masks_distant_tokens() -> None:
    slots = SlotKVCache(MistralConfig(num_hidden_layers=2, sliding_window=2))
    mask = slots.decode(torch.tensor([3, 1]), longest=4)
    assert isinstance(mask, torch.Tensor)
    assert mask[:, 0, 0].tolist() == [[False, False, True, True], [True, True, False, False]]


def test_each_type_of_layers_has_its_mask() -> None:
    config = Qwen2Config(
        num_hidden_layers=2, use_sliding_window=True, sliding_window=2, max_window_layers=1
    )
    masks = SlotKVCache(config).decode(torch.tensor([2]), longest=3)
    assert isinstance(masks, dict)
    assert masks["full_attention"].flatten().tolist() == [True, True, True]
    assert masks["sliding_attention"].flatten().tolist() == [False, True, True]


def test_a_larger_cache_keeps_the_slots_in_use() -> None:
    slots = cache()
    write_prompts(slots, 0, 3, 1.0)
    write_prompts(slots, 2, 3, 2.0)
    slots.reserve(3, 16, num_used=3)
    assert (slots.num_slots, slots.slot_length) == (3, 16)
    keys = keys_of(slots, 1)
    assert keys.shape == (3, 2, 16, 4)
    assert keys[:, 0, :4, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [2, 2, 2, 0]]


def test_slots_are_copied_and_cleared() -> None:
    slots = cache()
    write_prompts(slots, 0, 3, torch.nan)
    write_prompts(slots, 2, 3, 2.0)
    slots.clear(0)
    slots.copy(3, 0, length=2)
    keys = keys_of(slots, 0)
    assert keys[0, 0, :4, 0].tolist() == [2, 2, 0, 0]
    assert keys[1, 0, :3, 0].isnan().all()


def test_the_size_of_a_token_includes_all_layers() -> None:
    slots = cache()
    write_prompts(slots, 0, 1, 1.0)
    assert slots.bytes_per_token == 2 * 2 * 2 * 4 * 4


def test_layers_without_keys_and_values_are_refused() -> None:
    config = LlamaConfig(num_hidden_layers=2)
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(EngineUnavailableError, match="this model has linear_attention"):
        SlotKVCache(config)
