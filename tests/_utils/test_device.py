from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vlcore._utils.device import as_device, as_dtype, choose_dtype, has_native_bfloat16
from vlcore.errors import EngineUnavailableError, OptionError


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (None, None),
        ("float16", torch.float16),
        ("torch.bfloat16", torch.bfloat16),
        ("half", torch.float16),
        (torch.float64, torch.float64),
    ],
)
def test_a_dtype_is_read(given: Any, dtype: torch.dtype | None) -> None:
    assert as_dtype(given) is dtype


@pytest.mark.parametrize("given", ["int8", torch.int64, "float13", "nn", "", 16, "__doc__"])
def test_an_invalid_dtype_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="dtype must be a floating-point torch dtype") as caught:
        as_dtype(given)
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "device", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "cuda", torch.bfloat16),
        ({"torch_dtype": "float32"}, "cuda", torch.float32),
        ({"text_config": {"dtype": "bfloat16"}}, "cuda", torch.bfloat16),
        ({}, "cuda", torch.float16),
    ],
)
def test_auto_dtype_on_cuda(config: dict[str, Any], device: str, expected: torch.dtype) -> None:
    assert choose_dtype("auto", torch.device(device), config) is expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.bfloat16),
        ({}, torch.bfloat16),
        ({"torch_dtype": "float32"}, torch.float32),
        ({"text_config": {"dtype": "float32"}}, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(
    config: dict[str, Any], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("vlcore._utils.device.has_native_bfloat16", lambda: True)
    assert choose_dtype("auto", cpu, config) is expected
    assert choose_dtype("float16", cpu, config) is torch.float16
    monkeypatch.setattr("vlcore._utils.device.has_native_bfloat16", lambda: False)
    assert choose_dtype("auto", cpu, config) is torch.float32
    assert choose_dtype("bfloat16", cpu, config) is torch.bfloat16


PROCESSORS = {
    "AVX2": ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False}, False),
    "AVX-512": ({"architecture": "x86_64", "avx512_f": True, "amx_bf16": False}, False),
    "AVX512-BF16": ({"architecture": "x86_64", "avx512_bf16": True}, True),
    "AMX": ({"architecture": "x86_64", "amx_tile": True, "amx_bf16": True}, True),
    "Arm": ({"architecture": "aarch64", "neon": True, "bf16": False, "sve_max_length": 16}, False),
    "Arm with BF16": ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
}


@pytest.mark.parametrize("processor", PROCESSORS)
def test_native_bfloat16_is_read_from_torchs_capabilities(
    processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    capabilities, native = PROCESSORS[processor]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert has_native_bfloat16() is native
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_native_bfloat16()


@pytest.mark.parametrize(
    ("cpuinfo", "native"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512bw\n", False),
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_tile\n\nprocessor\t: 1\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nmodel name\t: a bf16 one\nFeatures\t: fp asimd svebf16\n", False),
        (None, False),
    ],
)
def test_without_torchs_capabilities_native_bfloat16_is_read_from_cpuinfo(
    cpuinfo: str | None, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(path: Path, encoding: str) -> str:
        assert str(path) == "/proc/cpuinfo"
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert has_native_bfloat16() is native


@pytest.mark.skipif(
    not (Path("/proc/cpuinfo").exists() and hasattr(torch.cpu, "get_capabilities")),
    reason="needs Linux, and a torch that tells what the processor has",
)
def test_torch_and_linux_agree_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    according_to_torch = has_native_bfloat16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert has_native_bfloat16() is according_to_torch


def test_a_missing_cuda_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert as_device("cuda:1") == torch.device("cuda", 1)
    assert as_device("cuda") == torch.device("cuda")
    with pytest.raises(EngineUnavailableError, match=r"cuda:2.*sees 2 CUDA device"):
        as_device("cuda:2")
