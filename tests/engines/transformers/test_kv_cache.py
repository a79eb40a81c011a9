from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_families import config_of

from vlcore.engines.transformers.kv_cache import SlotKVCache
from vlcore.errors import EngineUnavailableError


def states(num_slots: int, length: int, value: float) -> torch.Tensor:
    """Keys or values of 2 heads of 4 numbers."""
    return torch.full((num_slots, 2, length, 4), value)


def cache(**options: Any) -> SlotKVCache:
    made = SlotKVCache(config_of("llama", num_hidden_layers=2, **options))
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
    keys: Any = slots.layers[layer]
    states: torch.Tensor = keys.keys
    return states


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


def state_cache() -> SlotKVCache:
    """Four slots, for a layer with states and one with keys and values."""
    made = SlotKVCache(
        config_of("llama", num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    )
    made.reserve(4, 8, num_used=0)
    return made


def write_states(slots: SlotKVCache, first: int, value: float) -> None:
    """Store a convolution of three columns and a recurrence, for two prompts of two tokens."""
    slots.prefill(first)
    assert slots.get_conv_state(0) is None
    assert slots.get_recurrent_state(0) is None
    inputs = torch.full((2, 5, 2), value)
    padded = slots.update_conv_state(inputs, 0, conv_kernel_size=3)
    assert padded[:, :, 0].count_nonzero() == 0
    assert torch.equal(padded[:, :, 1:].nan_to_num(), inputs.nan_to_num())
    slots.update_recurrent_state(torch.full((2, 3), value), 0)
    slots.update(states(2, 2, value), states(2, 2, value), 1)


def states_of(slots: SlotKVCache) -> tuple[torch.Tensor, torch.Tensor]:
    conv, recurrent = slots.get_conv_state(0), slots.get_recurrent_state(0)
    assert conv is not None
    assert recurrent is not None
    return conv, recurrent


def test_a_step_changes_the_states_of_the_running_sequences_only() -> None:
    slots = state_cache()
    write_states(slots, 0, 1.0)
    write_states(slots, 2, 2.0)
    slots.decode(torch.tensor([2, 2, 2]), longest=3)
    conv, recurrent = states_of(slots)
    assert conv[:, 0, 2].tolist() == recurrent[:, 0].tolist() == [1, 1, 2]
    conv += 10  # in place, as transformers does
    slots.update_recurrent_state(recurrent + 20, 0)
    slots.decode(torch.tensor([3, 3, 3, 2]), longest=4)
    conv, recurrent = states_of(slots)
    assert conv[:, 0, 2].tolist() == [11, 11, 12, 2]
    assert recurrent[:, 0].tolist() == [21, 21, 22, 2]


def test_states_are_kept_copied_and_cleared_with_their_slots() -> None:
    slots = state_cache()
    write_states(slots, 0, torch.nan)
    write_states(slots, 2, 2.0)
    slots.reserve(5, 16, num_used=4)
    slots.clear(0)
    slots.copy(3, 1, length=2)
    slots.decode(torch.tensor([2] * 4), longest=3)
    _, recurrent = states_of(slots)
    assert recurrent[:, 0].tolist() == [0, 2, 2, 2]


def test_states_take_memory_for_each_sequence_and_not_for_each_token() -> None:
    slots = state_cache()
    assert slots.has_states
    assert not cache().has_states
    assert slots.bytes_per_slot == 0
    write_states(slots, 0, 1.0)
    assert slots.bytes_per_slot == (5 * 3 + 3) * 4
    assert slots.bytes_per_token == 2 * 2 * 4 * 4


def test_a_second_state_of_one_layer_is_refused() -> None:
    slots = state_cache()
    slots.prefill(0)
    with pytest.raises(EngineUnavailableError, match="one state of a convolution"):
        slots.update_recurrent_state(torch.zeros(1, 3), 0, state_idx=1)


def test_a_release_of_transformers_without_states_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlcore.engines.transformers.state_layer._Base", object)
    with pytest.raises(EngineUnavailableError, match="a newer release of transformers"):
        state_cache()


def test_a_part_of_a_prompt_is_stored_after_the_columns_before_it() -> None:
    slots = cache()
    write_prompts(slots, 0, 3, 1.0)
    slots.prefill(0, [range(3, 8), range(2, 3)])  # the second part is padded beyond the slot
    for layer in range(2):
        keys, values = slots.update(states(2, 5, 5.0), states(2, 5, -5.0), layer)
        assert keys.shape == (2, 2, 8, 4)
        assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 5, 5, 5, 5, 5]
        assert keys[1, 0, :, 0].tolist() == [1, 1, 5, 0, 0, 0, 0, 0]
        assert torch.equal(values, -keys)


def test_columns_are_read_and_written() -> None:
    slots = cache()
    write_prompts(slots, 0, 3, 1.0)
    write_prompts(slots, 2, 3, 2.0)
    read = slots.read(2, 1, 3)
    slots.clear(2)
    assert [tuple(one.shape) for one in read] == [(2, 2, 4)] * 4
    slots.write(0, 2, read)
    for layer in range(2):
        assert keys_of(slots, layer)[0, 0, :6, 0].tolist() == [1, 1, 2, 2, 0, 0]
