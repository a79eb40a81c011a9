"""The device and the dtype of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlcore._utils.resources import available_memory
from vlcore.errors import EngineUnavailableError, OptionError

_BFLOAT16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Names of the processor features, which torch and Linux share."""


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Convert a floating-point dtype or its name, such as ``"float16"``.

    Raises:
        OptionError: ``dtype`` is not a floating-point dtype of torch.
    """
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else None
    if isinstance(named, torch.dtype) and named.is_floating_point:
        return named
    raise OptionError(
        f"dtype must be a floating-point torch dtype or its name, such as 'float16', 'bfloat16' or "
        f"'float32'; it is {dtype!r}"
    )


def as_device(device: torch.device | str) -> torch.device:
    """Convert a device or its name; ``"auto"`` is CUDA where it is available, or else the CPU.

    Raises:
        OptionError: ``device`` is neither a CPU nor a CUDA device.
        EngineUnavailableError: ``device`` is a CUDA device, and CUDA is not available or has fewer
            devices.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(
            f"device must be auto, cpu, cuda or cuda:N; it is {str(device)!r}: {error}"
        ) from error
    if resolved.type not in ("cpu", "cuda"):
        raise OptionError(f"device must be auto, cpu, cuda or cuda:N; it is {str(device)!r}")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailableError(
            f"device {str(device)!r} was requested and torch {torch.__version__} sees no CUDA "
            "device: use device='cpu', or install a CUDA build of torch"
        )
    num_devices = torch.cuda.device_count() if resolved.type == "cuda" else 0
    if resolved.type == "cuda" and (resolved.index or 0) >= num_devices:
        raise EngineUnavailableError(
            f"device {str(device)!r} was requested and torch sees {num_devices} CUDA device(s), "
            f"cuda:0 to cuda:{num_devices - 1}"
        )
    return resolved


def choose_dtype(
    dtype: torch.dtype | str, device: torch.device, config: Mapping[str, Any]
) -> torch.dtype:
    """Convert a dtype; ``"auto"`` depends on the device and on the dtype in ``config.json``.

    On CUDA, ``"auto"`` is the dtype in ``config.json`` if that is bfloat16 or float32, or else
    float16. On a CPU, it is bfloat16 if the processor supports it natively and ``config.json`` does
    not state float32, or else float32.

    Raises:
        OptionError: ``dtype`` is not a floating-point dtype.
    """
    if dtype != "auto":
        return as_dtype(dtype) or torch.float32
    stated = _stated_dtype(config)
    if device.type == "cpu":
        fast = has_native_bfloat16() and stated is not torch.float32
        return torch.bfloat16 if fast else torch.float32
    return stated or torch.float16


def has_native_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, and torch has the kernels for it.

    The features are AVX512-BF16 or AMX-BF16 on x86, and BF16 on Arm. Without oneDNN, as on macOS,
    torch computes bfloat16 more slowly than float32 on any processor.
    """
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_kernels and not _BFLOAT16_FEATURES.isdisjoint(_processor_features())


def _processor_features() -> set[str]:
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    # Older releases of torch have only private functions for this.
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        return set()
    flags = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return {name for line in flags for name in line.split()}


def _stated_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """Return the dtype that a ``config.json`` states, if it is bfloat16 or float32."""
    for part in (config, config.get("text_config")):
        for key in ("torch_dtype", "dtype"):
            if isinstance(part, Mapping) and part.get(key) in ("bfloat16", "float32"):
                return as_dtype(part[key])
    return None


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device, in bytes; that of a CPU is limited by its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return available_memory()
