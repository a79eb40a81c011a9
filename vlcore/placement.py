"""Where a model goes, and in which dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil
import torch

from vlcore.errors import EngineUnavailableError, OptionError


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
    """Read a dtype; ``"auto"`` is float32 on a CPU, and on CUDA what ``config.json`` states.

    Raises:
        OptionError: it is no floating dtype.
    """
    if dtype != "auto":
        return as_dtype(dtype) or torch.float32
    if device.type == "cpu":
        return torch.float32
    for part in (config, config.get("text_config")):
        for key in ("torch_dtype", "dtype"):
            if isinstance(part, Mapping) and part.get(key) in ("bfloat16", "float32"):
                return as_dtype(part[key]) or torch.float16
    return torch.float16


def free_bytes(device: torch.device) -> int:
    """Memory that a device has left."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return int(psutil.virtual_memory().available)
