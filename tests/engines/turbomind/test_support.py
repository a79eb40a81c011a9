from __future__ import annotations

import importlib.util
import re
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest
import torch
from engine_support import extra_requirement, model_without_view, read_pins, text_model

from vlcore.engines.turbomind import support
from vlcore.engines.turbomind.support import (
    embedding_name,
    is_turbomind_config,
    lmdeploy_version,
    supported_versions,
    unsupported_reason,
)

CUDA = torch.device("cuda", 0)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "lmdeploy_version", lambda: "0.18.0")


def test_the_extra_takes_the_releases_that_are_supported() -> None:
    requirement = extra_requirement("turbomind")
    assert requirement.name == "lmdeploy"
    assert requirement.specifier == supported_versions()


def test_the_pinned_release_is_supported() -> None:
    assert supported_versions().contains(read_pins("constraints-turbomind.txt")["lmdeploy"])


def test_pins_in_both_lists_agree_except_for_torch() -> None:
    pins, others = read_pins("constraints.txt"), read_pins("constraints-turbomind.txt")
    assert {name for name in pins.keys() & others.keys() if pins[name] != others[name]} == {"torch"}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_supported_model_has_no_unsupported_reason(dtype: torch.dtype) -> None:
    assert unsupported_reason(text_model(), CUDA, dtype) is None
    assert embedding_name("LlamaForCausalLM") == "model.embed_tokens.weight"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("config", "device", "dtype", "reason"),
    [
        ({}, "cpu", torch.float16, "needs a CUDA device, and the device is cpu"),
        ({}, "cuda", torch.float32, "computes in float16 or bfloat16, and the dtype is float32"),
        (
            {"architectures": ["GemmaForCausalLM"]},
            "cuda",
            torch.float16,
            "does not support GemmaForCausalLM; it supports LlamaForCausalLM, Mi",
        ),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 1024},
            "cuda",
            torch.float16,
            r"MistralForCausalLM attend to the last 1024 tokens",
        ),
        ({"num_attention_heads": 8}, "cuda", torch.float16, "size 64, 128 or 256; .* have size 32"),
        ({"head_dim": 80}, "cuda", torch.float16, "have size 80"),
    ],
)
def test_unsupported_models_have_a_reason(
    config: dict[str, Any], device: str, dtype: torch.dtype, reason: str
) -> None:
    found = unsupported_reason(text_model(**config), torch.device(device), dtype)
    assert found is not None
    assert re.search(reason, found)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "config", [{"sliding_window": 4096}, {"sliding_window": 8, "use_sliding_window": False}]
)
def test_a_sliding_window_of_the_whole_context_is_supported(config: dict[str, Any]) -> None:
    assert unsupported_reason(text_model(**config), CUDA, torch.float16) is None


@pytest.mark.usefixtures("installed")
def test_lmdeploys_own_settings_state_the_dtype() -> None:
    assert unsupported_reason(text_model(), CUDA, torch.float32, config=object()) is None


@pytest.mark.usefixtures("installed")
def test_a_model_without_a_text_view_is_unsupported() -> None:
    assert unsupported_reason(model_without_view(), CUDA, torch.float16) == (
        "the model has no text view: its weights are packed"
    )


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (None, r"lmdeploy is not installed: pip install .*vlcore\[turbomind\]"),
        ("0.17.1", r"lmdeploy 0\.17\.1 is installed, and vlcore requires"),
        ("0.19.0rc1", r"lmdeploy 0\.19\.0rc1 is installed"),
    ],
)
def test_an_unsupported_lmdeploy_is_reported(
    monkeypatch: pytest.MonkeyPatch, version: str | None, reason: str
) -> None:
    monkeypatch.setattr(support, "lmdeploy_version", lambda: version)
    found = unsupported_reason(text_model(), CUDA, torch.float16)
    assert found is not None
    assert re.match(reason, found)


def test_the_version_is_read_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: "0.18.3")
    assert lmdeploy_version() == "0.18.3"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert lmdeploy_version() is None
    assert not [name for name in set(sys.modules) - before if name.startswith("lmdeploy")]


def test_metadata_without_a_module_is_not_an_installed_lmdeploy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", missing)
    assert lmdeploy_version() is None


def test_lmdeploys_settings_are_recognized_once_lmdeploy_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages: Any = ModuleType("lmdeploy.messages")
    messages.TurbomindEngineConfig = type("TurbomindEngineConfig", (), {})
    monkeypatch.delitem(sys.modules, "lmdeploy.messages", raising=False)
    assert not is_turbomind_config(messages.TurbomindEngineConfig())
    monkeypatch.setitem(sys.modules, "lmdeploy.messages", messages)
    assert is_turbomind_config(messages.TurbomindEngineConfig())
    assert not is_turbomind_config(object())
