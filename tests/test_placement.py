from __future__ import annotations

from typing import Any

import pytest
import torch

from vlcore.errors import OptionError
from vlcore.placement import as_dtype, choose_dtype


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
def test_a_dtype_that_is_none(given: Any) -> None:
    with pytest.raises(OptionError, match="dtype must be a floating torch dtype") as caught:
        as_dtype(given)
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "device", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, "cuda", torch.bfloat16),
        ({"torch_dtype": "float32"}, "cuda", torch.float32),
        ({"text_config": {"dtype": "bfloat16"}}, "cuda", torch.bfloat16),
        ({}, "cuda", torch.float16),
        ({"torch_dtype": "bfloat16"}, "cpu", torch.float32),
    ],
)
def test_auto_dtype(config: dict[str, Any], device: str, expected: torch.dtype) -> None:
    assert choose_dtype("auto", torch.device(device), config) is expected
