from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_json
from small_checkpoint import some_tensors, write_checkpoint
from torch import Tensor, nn
from transformers import CLIPVisionModel, PixtralVisionModel, SiglipVisionModel
from weight_files import (
    single_safetensors,
)

from vlcore import Checkpoint, TensorSource, empty_weights, renamed
from vlcore.errors import TensorError


class _Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2, device="meta")


def fill(directory: Path, sources: dict[str, TensorSource]) -> nn.Module:
    module = _Module()
    Checkpoint.open(directory).load_module(module, sources, dtype=torch.float32)
    return module


WHOLE = {"a.weight": TensorSource("a.weight"), "a.bias": TensorSource("a.bias")}


def test_a_module_is_filled_and_frozen(tmp_path: Path) -> None:
    state = fill(write_checkpoint(tmp_path), WHOLE).state_dict()
    assert torch.equal(state["a.weight"], some_tensors()["a.weight"].float())
    assert torch.equal(state["a.bias"], some_tensors()["a.bias"])


def test_a_filled_module_requires_no_gradient(tmp_path: Path) -> None:
    module = fill(write_checkpoint(tmp_path), WHOLE)
    assert not any(parameter.requires_grad for parameter in module.parameters())


class _Inner(nn.Module):
    frequencies: Tensor

    def __init__(self, ids: Tensor) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.rand(4), persistent=False)
        self.register_buffer("ids", ids, persistent=False)


class _WithBuffers(_Module):
    """Has a dropout, and buffers that no checkpoint holds, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        ids = torch.arange(3)
        self.register_buffer("ids", ids, persistent=False)
        self.inner = _Inner(ids)


def devices_of(module: nn.Module) -> dict[str, str]:
    tensors = [*module.named_parameters(), *module.named_buffers(remove_duplicate=False)]
    return {name: tensor.device.type for name, tensor in tensors}


def test_a_filled_module_is_ready_for_inference(tmp_path: Path) -> None:
    module = _WithBuffers().train()
    before = module.inner.frequencies.clone()
    Checkpoint.open(write_checkpoint(tmp_path)).load_module(module, WHOLE, dtype=torch.bfloat16)
    assert not any(part.training for part in module.modules())
    assert set(devices_of(module).values()) == {"cpu"}
    assert torch.equal(module.inner.frequencies, before)  # still in float32
    assert module.inner.frequencies.dtype == torch.float32


def test_buffers_go_to_the_device_of_the_weights(tmp_path: Path) -> None:
    # The meta device stands in for CUDA: what is left on the CPU is seen either way.
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    module = _WithBuffers()
    checkpoint.load_module(module, WHOLE, device="meta")
    assert set(devices_of(module).values()) == {"meta"}
    assert module.inner.frequencies.shape == (4,)
    assert "inner.frequencies" not in module.state_dict()


def test_buffers_follow_the_device_of_their_part(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    module = _WithBuffers()
    checkpoint.load_module(module, WHOLE, device={"": "cpu", "inner": "meta"})
    assert devices_of(module) == {
        "a.weight": "cpu",
        "a.bias": "cpu",
        "ids": "cpu",
        "inner.frequencies": "meta",
        "inner.ids": "meta",
    }


def test_a_persistent_buffer_is_read_like_a_parameter(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(2)
    stored = {name: torch.ones_like(tensor) * 7 for name, tensor in module.state_dict().items()}
    write_json(tmp_path / "config.json", {})
    single_safetensors(tmp_path, stored)
    sources = {name: TensorSource(name) for name in stored}
    Checkpoint.open(tmp_path).load_module(module, sources, dtype=torch.float16)
    assert module.running_mean is not None
    assert (module.running_mean.dtype, module.running_mean.tolist()) == (torch.float16, [7, 7])


def test_a_buffer_without_values_is_an_error(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = _WithBuffers()
    with pytest.raises(TensorError, match=r"buffer 'ids' of _WithBuffers .* vlcore\.empty_weights"):
        Checkpoint.open(write_checkpoint(tmp_path)).load_module(module, WHOLE)


@pytest.mark.parametrize("kind", [CLIPVisionModel, SiglipVisionModel, PixtralVisionModel])
def test_a_transformers_vision_model_is_on_one_device(tmp_path: Path, kind: Any) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = kind.config_class(**sizes, num_attention_heads=2, image_size=8, patch_size=4)
    stored = kind(config).state_dict()
    write_json(tmp_path / "config.json", {})
    single_safetensors(tmp_path, {f"visual.{name}": value for name, value in stored.items()})
    checkpoint = Checkpoint.open(tmp_path)
    with empty_weights():
        tower = kind(config)
    assert list(tower.buffers())
    checkpoint.load_module(tower, renamed(checkpoint, {"visual.": ""}), device="meta")
    assert set(devices_of(tower).values()) == {"meta"}
    assert not tower.training


def test_a_tensor_may_be_part_of_a_stored_one(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {})
    fused = torch.arange(20.0).view(4, 5)
    single_safetensors(tmp_path, {"fused": fused[:, :3].contiguous(), "bias": torch.ones(4)})
    sources = {
        "a.weight": TensorSource("fused", slice(2, 4)),
        "a.bias": TensorSource("bias", slice(0, 2)),
    }
    weight = fill(tmp_path, sources).state_dict()["a.weight"]
    assert torch.equal(weight, fused[2:4, :3])
    assert weight.untyped_storage().nbytes() == weight.nbytes  # holds on to nothing else


def test_missing_tensors_are_listed(tmp_path: Path) -> None:
    with pytest.raises(
        TensorError, match=r"lacks 1 tensor\(s\) that config\.json asks for: a\.bias"
    ):
        fill(write_checkpoint(tmp_path), {"a.weight": TensorSource("a.weight")})


def test_unused_tensors_are_listed(tmp_path: Path) -> None:
    with pytest.raises(TensorError, match=r"holds 1 tensor\(s\) .* does not use: b\.weight"):
        fill(write_checkpoint(tmp_path), WHOLE | {"b": TensorSource("b.weight")})


def test_misshapen_tensors_are_listed(tmp_path: Path) -> None:
    crossed = {"a.weight": TensorSource("a.bias"), "a.bias": TensorSource("b.weight")}
    with pytest.raises(TensorError, match="wrong shapes") as caught:
        fill(write_checkpoint(tmp_path), crossed)
    assert "a.bias gives [2] where config.json asks for [2, 3]" in str(caught.value)
    assert "b.weight gives [1] where config.json asks for [2]" in str(caught.value)
