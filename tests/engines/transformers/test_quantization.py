from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlcore.engines.transformers import quantization
from vlcore.engines.transformers.cpu_linear import CpuLinear
from vlcore.engines.transformers.int4_weight import block_size
from vlcore.engines.transformers.int8_weight import can_decode_int8, can_multiply_int8
from vlcore.engines.transformers.quantization import (
    convert_by_torchao,
    convert_for_cpu,
    quantize_weights,
)
from vlcore.errors import EngineUnavailableError, OptionError

needs_int8_products = pytest.mark.skipif(
    not can_decode_int8(), reason="this build of torch has no products with 8-bit integers for CPUs"
)
needs_int4_products = pytest.mark.skipif(
    block_size() is None, reason="torch has no fast products with 4-bit integers for this CPU"
)
IDS = torch.arange(2, 34).reshape(2, 16)


def make_model(*, is_tied: bool = False, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            tie_word_embeddings=is_tied,
        )
        model: LlamaForCausalLM = LlamaForCausalLM(config)
    module: nn.Module = model
    module.to(dtype)
    return model


def layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that are converted."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model(input_ids=IDS).logits
    return result


def rounded(weight: Tensor, highest: float) -> Tensor:
    """What 8 bits and one scale a row keep of a weight."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1, keepdim=True) / highest
    return (wide * (1 / scale)).round().clamp(-128, 127) * scale


def rounded_to_4_bits(weight: Tensor) -> Tensor:
    """What 4 bits, and a scale and an offset for 64 columns, keep of a narrower weight."""
    wide = weight.float()
    scale = (wide.amax(dim=1, keepdim=True).clamp(min=0) - wide.amin(1, True).clamp(max=0)) / 15
    scale = scale.bfloat16().float()
    offset = (wide.amin(dim=1, keepdim=True).clamp(max=0) + 8 * scale).bfloat16().float()
    return ((wide - offset) / scale).round().clamp(-8, 7) * scale + offset


@pytest.mark.parametrize("is_tied", [False, True], ids=["own output layer", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torchaos_logits_are_those_of_the_rounded_weights(
    is_tied: bool, dtype: torch.dtype
) -> None:
    model = make_model(is_tied=is_tied, dtype=dtype)
    expected: nn.Module = copy.deepcopy(model)
    expected.float()
    for layer in layers(expected).values():
        # torchao spreads the largest magnitude over half of -128..127.
        layer.weight.data = rounded(layer.weight, 127.5)
    convert_by_torchao(model)
    tolerance = 1e-5 if dtype is torch.float32 else 0.02
    torch.testing.assert_close(logits(model).float(), logits(expected), atol=tolerance, rtol=0)
    assert not torch.equal(logits(model).float(), logits(make_model(is_tied=is_tied)))


@needs_int8_products
@pytest.mark.parametrize("is_tied", [False, True], ids=["own output layer", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_cpus_logits_are_those_of_the_rounded_weights(
    is_tied: bool, dtype: torch.dtype
) -> None:
    model = make_model(is_tied=is_tied, dtype=dtype)
    embedding = model.get_input_embeddings().weight
    expected: Any = copy.deepcopy(model)
    expected.float()
    expected.lm_head.weight = nn.Parameter(expected.lm_head.weight.detach().clone())
    for layer in [*layers(expected).values(), expected.lm_head]:
        layer.weight.data = rounded(layer.weight, 127)
    convert_for_cpu(model, "int8")
    assert [name for name, one in model.named_modules() if isinstance(one, nn.Linear)] == []
    assert model.get_input_embeddings().weight is embedding
    torch.testing.assert_close(logits(model).float(), logits(expected), atol=0.02, rtol=0)
    assert not torch.equal(logits(model).float(), logits(make_model(is_tied=is_tied)))


@needs_int4_products
@pytest.mark.parametrize("is_tied", [False, True], ids=["own output layer", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_4_bits_the_output_layer_keeps_8(is_tied: bool, dtype: torch.dtype) -> None:
    model = make_model(is_tied=is_tied, dtype=dtype)
    embedding = model.get_input_embeddings().weight
    expected: Any = copy.deepcopy(model)
    expected.float()
    expected.lm_head.weight = nn.Parameter(rounded(expected.lm_head.weight.detach(), 127))
    for layer in layers(expected).values():
        layer.weight.data = rounded_to_4_bits(layer.weight.detach())
    quantize_weights(model, "int4")
    assert isinstance(model.lm_head, CpuLinear)
    assert model.get_input_embeddings().weight is embedding
    torch.testing.assert_close(logits(model).float(), logits(expected), atol=0.02, rtol=0)
    assert not torch.equal(logits(model).float(), logits(make_model(is_tied=is_tied)))


def test_4_bits_are_refused_where_torch_has_no_fast_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantization, "block_size", lambda: None)
    model: Any = make_model()
    with pytest.raises(EngineUnavailableError, match="'int4' is not available on this CPU"):
        quantize_weights(model, "int4")
    with pytest.raises(EngineUnavailableError, match="'int4' is not available on a GPU"):
        quantize_weights(model.to("meta"), "int4")
    assert type(model.lm_head) is nn.Linear


@needs_int8_products
def test_logits_in_float32_are_not_rounded_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_possible in {False, can_multiply_int8()}:
        monkeypatch.setattr(quantization, "can_multiply_int8", lambda: is_possible)  # noqa: B023
        model = make_model()
        convert_for_cpu(model, "int8")
        assert isinstance(model.lm_head, CpuLinear) == is_possible
        result = logits(model)
        assert not torch.equal(result, result.bfloat16().float())


@needs_int8_products
def test_what_stays_as_loaded_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(dtype=torch.bfloat16)
    with caplog.at_level(logging.INFO, "vlcore"):
        convert_for_cpu(model, "int8")
    assert "15 linear layers were converted to int8; 4 KiB" in caplog.text


@needs_int8_products
def test_weights_are_converted_for_the_cpu_where_torch_multiplies_8_bit_integers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    model = make_model()
    quantize_weights(model, "int8")
    assert isinstance(model.lm_head, CpuLinear)


def test_torchao_converts_where_torch_does_not_multiply_8_bit_integers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quantization, "can_decode_int8", lambda: False)
    model = make_model()
    with caplog.at_level(logging.INFO, "vlcore"):
        quantize_weights(model, "int8")
    assert "torchao converts the weights" in caplog.text
    weight: Any = layers(model)["model.layers.0.self_attn.q_proj"].weight
    assert weight.qdata.dtype is torch.int8


def test_torchao_converts_every_linear_layer_but_the_output() -> None:
    model = make_model()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    convert_by_torchao(model)
    converted = {f"{name}.weight" for name in layers(model)}
    assert len(converted) == 2 * 7
    parameters: dict[str, Any] = dict(model.named_parameters())
    assert parameters.keys() == before.keys()
    for name, parameter in parameters.items():
        if name in converted:
            assert parameter.qdata.dtype is torch.int8
            assert parameter.qdata.shape == before[name].shape
            assert parameter.scale.shape == (len(before[name]), 1)
        else:
            assert torch.equal(parameter, before[name])
    assert type(model.lm_head.weight) is nn.Parameter


def test_with_torchao_a_tied_output_layer_stays_the_embedding() -> None:
    model = make_model(is_tied=True)
    convert_by_torchao(model)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert type(model.lm_head.weight) is nn.Parameter


def test_each_weight_is_freed_before_the_next_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchao.quantization import Int8Tensor

    model = make_model()
    originals = [weakref.ref(layer.weight) for layer in layers(model).values()]
    num_alive: list[int] = []
    convert = Int8Tensor.from_hp.__func__

    def counting(cls: type, *arguments: Any, **options: Any) -> Any:
        num_alive.append(sum(original() is not None for original in originals))
        return convert(cls, *arguments, **options)

    monkeypatch.setattr(Int8Tensor, "from_hp", classmethod(counting))
    convert_by_torchao(model)
    assert num_alive == list(range(14, 0, -1))


@pytest.mark.parametrize("weights", ["int2", "", "INT8", None])
def test_an_unknown_format_is_refused(weights: Any) -> None:
    model = make_model()
    with pytest.raises(OptionError, match="weights must be one of int8, int4; it is") as caught:
        quantize_weights(model, weights)
    assert repr(weights) in str(caught.value)


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    monkeypatch.setattr(quantization, "can_decode_int8", lambda: False)
    model = make_model()
    before = logits(model)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'vlcore\[int8\]'"):
        quantize_weights(model, "int8")
    assert torch.equal(logits(model), before)


def test_a_model_without_linear_layers_is_refused() -> None:
    model = make_model()
    model.model.layers = nn.ModuleList()
    with pytest.raises(EngineUnavailableError, match="LlamaForCausalLM has none"):
        quantize_weights(model, "int8")


@pytest.mark.slow
def test_torchao_logs_nothing_when_a_model_is_created() -> None:
    code = "import vlcore, transformers; transformers.LlamaForCausalLM; import torchao"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert done.stderr == ""
