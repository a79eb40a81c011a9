"""Where a model goes, and in which dtype."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from vlcore.errors import EngineUnavailableError, OptionError

_BFLOAT16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""As torch and Linux both name them."""


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Read a floating dtype or its name, such as ``"float16"``.

    Raises:
        OptionError: it is no floating dtype of torch.
    """
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else None
    if isinstance(named, torch.dtype) and named.is_floating_point:
        return named
    raise OptionError(
        f"dtype must be a floating torch dtype or its name, such as 'float16', 'bfloat16' or "
        f"'float32'; it is {dtype!r}"
    )


def as_device(device: torch.device | str) -> torch.device:
    """Read a device or its name; ``"auto"`` is CUDA where there is any.

    Raises:
        OptionError: it is neither a CPU nor a CUDA device.
        EngineUnavailableError: it is a CUDA device, and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(
            f"device must be auto, cpu, cuda or cuda:N; it is {str(device)!r}: {error}"
        ) from error
    if place.type not in ("cpu", "cuda"):
        raise OptionError(f"device must be auto, cpu, cuda or cuda:N; it is {str(device)!r}")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailableError(
            f"device {str(device)!r} was asked for and torch {torch.__version__} sees no CUDA "
            "device: use device='cpu', or install a CUDA build of torch"
        )
    return place


def choose_dtype(
    dtype: torch.dtype | str, device: torch.device, config: Mapping[str, Any]
) -> torch.dtype:
    """Read a dtype; ``"auto"`` goes by the device and by what ``config.json`` states.

    On CUDA it is the bfloat16 or float32 that is stated, or else float16. On a CPU it is bfloat16
    where the processor multiplies it natively and float32 is not stated, or else float32.

    Raises:
        OptionError: it is no floating dtype.
    """
    if dtype != "auto":
        return as_dtype(dtype) or torch.float32
    stated = _stated_dtype(config)
    if device.type == "cpu":
        fast = has_native_bfloat16() and stated is not torch.float32
        return torch.bfloat16 if fast else torch.float32
    return stated or torch.float16


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, and torch has the kernels for it.

    That is AVX512-BF16 or AMX-BF16 on x86, and BF16 on Arm; without oneDNN, as on macOS, torch
    computes bfloat16 slower than float32 whatever the processor can do.
    """
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_kernels and not _BFLOAT16_FEATURES.isdisjoint(_processor_features())


def _processor_features() -> set[str]:
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    # Older releases of torch tell this in private functions only.
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return set()
    flags = [line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))]
    return {name for line in flags for name in line.split()}


def _stated_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """The bfloat16 or float32 that a ``config.json`` states, if it does."""
    for part in (config, config.get("text_config")):
        for key in ("torch_dtype", "dtype"):
            if isinstance(part, Mapping) and part.get(key) in ("bfloat16", "float32"):
                return as_dtype(part[key])
    return None


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return int(psutil.virtual_memory().available)
