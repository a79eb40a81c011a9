from __future__ import annotations

import pytest
import torch
from tiny_families import config_of

from vlcore.engines.transformers.attention_masks import FULL
from vlcore.engines.transformers.cache_layer import AttentionCall, Decode, Prefill
from vlcore.engines.transformers.kv_cache import KVCache, LayerStates
from vlcore.errors import EngineUnavailableError


def states(num_sequences: int, length: int, value: float) -> torch.Tensor:
    """Keys or values of 2 heads of 4 numbers."""
    return torch.full((num_sequences, 2, length, 4), value)


def make_cache(num_columns: int = 32) -> KVCache:
    made = KVCache(config_of("llama", num_hidden_layers=2))
    made.reserve(num_columns)
    return made


def call(start: int, length: int, stride: int = 0, num_rows: int = 1) -> AttentionCall:
    return AttentionCall(slice(0, num_rows), start, stride, length)


def write_prompt(cache: KVCache, start: int, length: int, value: float) -> None:
    whole = call(0, length)
    cache.begin(Prefill((range(start, start + length),), {FULL: [whole]}, begins=True))
    for index, layer in enumerate(cache.key_value_layers):
        given = states(1, length, value), states(1, length, -value)
        for attended, one in zip(cache.update(*given, index), given, strict=True):
            assert torch.equal(layer.attended(whole, attended), one) or one.isnan().any()


def keys_of(cache: KVCache, layer: int = 0) -> list[float]:
    """Return the first number of the first head of each column."""
    numbers: list[float] = cache.key_value_layers[layer].keys[0, :, 0].tolist()
    return numbers


def test_tokens_of_a_step_are_stored_in_their_columns_and_attend_to_earlier_ones() -> None:
    cache = make_cache()
    write_prompt(cache, 2, 3, 1.0)
    write_prompt(cache, 12, 3, 2.0)
    both = call(2, 4, stride=10, num_rows=2)
    cache.begin(Decode(torch.tensor([5, 15]), {FULL: [both]}))
    new = torch.cat([states(1, 1, 5.0), states(1, 1, 6.0)])
    for index, layer in enumerate(cache.key_value_layers):
        keys, values = (layer.attended(both, of) for of in cache.update(new, -new, index))
        assert keys.shape == values.shape == (2, 2, 4, 4)
        assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 5]
        assert keys[1, 1, :, 3].tolist() == [2, 2, 2, 6]
        assert torch.equal(values, -keys)


def test_a_part_of_a_prompt_is_stored_without_its_padding() -> None:
    cache = make_cache(16)
    write_prompt(cache, 0, 3, 1.0)
    calls = [call(0, 5), call(14, 1)]
    cache.begin(Prefill((range(3, 5), range(14, 15)), {FULL: calls}, begins=False))
    for index in range(2):
        columns = cache.update(states(2, 2, 5.0), states(2, 2, -5.0), index)
    assert keys_of(cache) == [1, 1, 1, 5, 5, *[0] * 9, 5, 0]
    keys, values = (cache.key_value_layers[1].attended(calls[0], of) for of in columns)
    assert keys[0, 1, :, 2].tolist() == [1, 1, 1, 5, 5]
    assert torch.equal(values, -keys)


def test_what_is_computed_from_columns_is_attended_to_instead() -> None:
    cache = make_cache()
    write_prompt(cache, 2, 3, 1.0)
    write_prompt(cache, 12, 3, 2.0)
    both = call(2, 4, stride=10, num_rows=2)
    cache.begin(Decode(torch.tensor([5, 15]), {FULL: [both]}))
    new = torch.cat([states(2, 1, 5.0)])
    compressed, _ = cache.update(new, -new, 1)
    expanded = torch.cat([compressed, compressed * 3], dim=3).transpose(1, 2)
    keys = torch.split(expanded, [4, 4], dim=3)[1].transpose(1, 2)
    assert isinstance(keys, LayerStates)
    layer = keys.cache_layer
    assert layer is cache.key_value_layers[1]
    attended = layer.attended(both, keys)
    assert attended.shape == (2, 2, 4, 4)
    assert attended[1, 1, :, 3].tolist() == [6, 6, 6, 15]


def test_a_larger_cache_keeps_its_columns() -> None:
    cache = make_cache(4)
    write_prompt(cache, 1, 2, 1.0)
    cache.reserve(8)
    assert cache.num_columns == 8
    assert keys_of(cache, 1) == [0, 1, 1, 0, 0, 0, 0, 0]


def test_columns_are_copied_and_cleared() -> None:
    cache = make_cache(8)
    write_prompt(cache, 0, 2, torch.nan)
    write_prompt(cache, 3, 2, 2.0)
    write_prompt(cache, 5, 2, 3.0)
    cache.copy(3, 1, 4)  # the columns overlap
    assert keys_of(cache)[1:] == [2, 2, 3, 3, 3, 3, 0]
    cache.clear(0, 2)
    assert keys_of(cache, 1) == [0, 0, 2, 3, 3, 3, 3, 0]


def test_the_size_of_a_token_includes_all_layers() -> None:
    cache = make_cache()
    write_prompt(cache, 0, 1, 1.0)
    assert cache.bytes_per_token == 2 * 2 * 2 * 4 * 4


def state_cache() -> KVCache:
    """A layer with states and one with keys and values."""
    made = KVCache(config_of("llama", num_hidden_layers=2, layer_types=["linear_attention", FULL]))
    made.reserve(32)
    return made


def prefill_states(cache: KVCache, values: list[float]) -> None:
    """Store a convolution of three columns and a recurrence, for prompts of two tokens."""
    num = len(values)
    columns = tuple(range(2 * index, 2 * index + 2) for index in range(num))
    cache.begin(Prefill(columns, {FULL: [call(0, 2, num_rows=num)]}, begins=True))
    assert cache.get_conv_state(0) is None
    assert cache.get_recurrent_state(0) is None
    inputs = torch.tensor(values)[:, None, None].expand(-1, 5, 2)
    padded = cache.update_conv_state(inputs, 0, conv_kernel_size=3)
    assert padded[:, :, 0].count_nonzero() == 0
    assert torch.equal(padded[:, :, 1:], inputs)
    cache.update_recurrent_state(torch.tensor(values)[:, None].expand(-1, 3), 0)
    cache.update(states(num, 2, 1.0), states(num, 2, 1.0), 1)


def decode_states(cache: KVCache, num_sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
    cache.begin(Decode(torch.arange(num_sequences), {FULL: []}))
    conv, recurrent = cache.get_conv_state(0), cache.get_recurrent_state(0)
    assert conv is not None
    assert recurrent is not None
    return conv, recurrent


def test_a_step_changes_the_states_of_the_running_sequences() -> None:
    cache = state_cache()
    prefill_states(cache, [1.0, 2.0])
    cache.arrange([0, 1])
    conv, recurrent = decode_states(cache, 2)
    assert conv[:, 0, 2].tolist() == recurrent[:, 0].tolist() == [1, 2]
    conv += 10  # in place, as transformers does
    cache.update_recurrent_state(recurrent + 20, 0)
    conv, recurrent = decode_states(cache, 2)
    assert conv[:, 0, 2].tolist() == [11, 12]
    assert recurrent[:, 0].tolist() == [21, 22]


def test_states_follow_the_order_of_the_sequences() -> None:
    cache = state_cache()
    prefill_states(cache, [1.0, 2.0])
    cache.arrange([1, 0, 0])  # two answers to the first prompt
    prefill_states(cache, [3.0])
    cache.arrange([3, 0, 2])
    _, recurrent = decode_states(cache, 3)
    assert recurrent[:, 0].tolist() == [3, 2, 1]
    cache.arrange([1])
    _, recurrent = decode_states(cache, 1)
    assert recurrent[:, 0].tolist() == [2]


def test_states_take_memory_for_each_sequence_and_not_for_each_token() -> None:
    cache = state_cache()
    assert cache.has_states
    assert not make_cache().has_states
    assert cache.bytes_per_sequence == 0
    prefill_states(cache, [1.0, 2.0])
    assert cache.bytes_per_sequence == (5 * 3 + 3) * 4
    assert cache.bytes_per_token == 2 * 2 * 4 * 4


def test_a_second_state_of_one_layer_is_refused() -> None:
    cache = state_cache()
    cache.begin(Prefill((range(1),), {FULL: [call(0, 1)]}, begins=True))
    with pytest.raises(EngineUnavailableError, match="one state of a convolution"):
        cache.update_recurrent_state(torch.zeros(1, 3), 0, state_idx=1)


def test_a_release_of_transformers_without_states_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlcore.engines.transformers.state_layer._Base", object)
    with pytest.raises(EngineUnavailableError, match="a newer release of transformers"):
        state_cache()
