from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vlcore._utils.device_map import device_of, dispatch, plan_devices
from vlcore.errors import OptionError

CPU = torch.device("cpu")


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def plan(device_map: Any, max_memory: Any = None) -> dict[str, Any]:
    return plan_devices(
        two_layers(), device_map, max_memory, dtype=torch.float32, whole=(nn.Linear,)
    )


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_a_module_that_fits_is_planned(device_map: str) -> None:
    assert plan(device_map, {"cpu": "1GiB"}) == {"": "cpu"}


def test_an_explicit_device_map_is_used() -> None:
    assert plan({"0": "cpu", "1": 1}) == {"0": "cpu", "1": 1}


@pytest.mark.parametrize(
    ("device_map", "max_memory", "message"),
    [
        ("everywhere", None, "device_map must be one of auto, balanced, sequential, or a mapping"),
        ({"0": "cpu"}, None, "device_map does not cover .*1.weight"),
        ("sequential", {"cpu": 100}, "submodules of Sequential fit on no device: all. Raise"),
        ({"0": "cpu", "1": "disk"}, None, "submodules of Sequential fit on no device: 1"),
    ],
)
def test_an_impossible_device_map_is_refused(
    device_map: Any, max_memory: Any, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        plan(device_map, max_memory)


def test_a_spread_module_is_called_like_any_other() -> None:
    module, same = two_layers(), two_layers()
    dispatch(module, {"0": "cpu", "1": "cpu"}, CPU)
    inputs = torch.randn(3, 4)
    assert torch.equal(module(inputs), same(inputs))


def test_a_tensor_is_on_the_device_of_the_innermost_submodule() -> None:
    plan = {"": "cpu", "layers": "meta", "layers.1": "cuda:1"}
    names = ("head.weight", "layers.0.weight", "layers.1.weight", "layers.10.weight")
    assert [str(device_of(plan, name)) for name in names] == ["cpu", "meta", "cuda:1", "meta"]
    assert str(device_of({"": 1}, "weight")) == "cuda:1"
