"""Floating dtypes, as torch's or by name."""

from __future__ import annotations

import torch

from vlcore.errors import OptionError


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
