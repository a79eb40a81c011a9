from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlcore.engines.transformers import weight_packing
from vlcore.engines.transformers.cpu_linear import CpuLinear
from vlcore.engines.transformers.linear_usage import find_linear_groups
from vlcore.engines.transformers.weight_packing import (
    num_copied_bytes,
    pack_weights,
    replace_layers,
)

IDS = torch.arange(2, 34).reshape(2, 16)


def make_model(*, has_bias: bool = False) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            attention_bias=has_bias,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model


def as_embedding(model: Any) -> Tensor:
    weight: Tensor = model.get_input_embeddings().weight
    return weight


def names(model: Any) -> set[tuple[str, ...]]:
    return {tuple(layer.name for layer in group) for group in find_linear_groups(model)}


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(input_ids=IDS).logits
    return result


def plain(weight: Tensor, bias: Tensor | None) -> Any:
    return lambda activations: nn.functional.linear(activations, weight, bias)


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
def test_layers_of_the_same_input_are_computed_together(has_bias: bool) -> None:
    model = make_model(has_bias=has_bias)
    assert names(model) == {
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
        ("lm_head",),
    }
    assert type(model.lm_head) is nn.Linear
    expected = logits(model)
    replace_layers(find_linear_groups(model), plain)
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)


def test_what_is_more_than_a_linear_layer_is_left_alone() -> None:
    class Derived(nn.Linear):
        pass

    model = make_model()
    layer = model.model.layers[0]
    layer.mlp.down_proj = Derived(48, 32)
    layer.self_attn.o_proj.register_forward_hook(lambda *_: None)
    layer.mlp.up_proj.bias = nn.Parameter(torch.ones(48))
    reads: list[Tensor] = []
    layer.self_attn.register_forward_pre_hook(lambda module, _: reads.append(module.k_proj.weight))
    assert names(model) == {("q_proj", "v_proj"), ("gate_proj",), ("up_proj",), ("lm_head",)}
    assert reads


def test_an_input_that_is_changed_between_two_layers_is_not_shared() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, states: Tensor) -> Tensor:
            own = states.clone()
            result: Tensor = self.first(own) + self.second(own.mul_(2))
            return result

    model = make_model()
    model.model.layers[0].mlp = Changing()
    assert {("first",), ("second",)} < names(model)


def test_packed_weights_give_the_same_logits() -> None:
    model = make_model()
    embedding = as_embedding(model)
    is_possible = weight_packing._can_pack(torch.float32)
    assert num_copied_bytes(model) == is_possible * embedding.nbytes
    expected = logits(model)
    pack_weights(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    assert as_embedding(model) is embedding
    assert isinstance(model.lm_head, CpuLinear) == is_possible


def test_without_packed_products_the_model_stays_as_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weight_packing, "_can_pack", lambda _: False)
    model = make_model()
    with caplog.at_level(logging.INFO, "vlcore"):
        pack_weights(model)
    assert "the weights stay as loaded" in caplog.text
    assert type(model.lm_head) is nn.Linear


def test_a_model_that_cannot_be_run_this_way_stays_as_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weight_packing, "_can_pack", lambda _: True)
    model = make_model()

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no")

    model.forward = fail
    pack_weights(model)
    assert "ValueError: no" in caplog.text
    assert type(model.lm_head) is nn.Linear
