from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vlcore.engines.transformers import int8_weight
from vlcore.engines.transformers.int8_weight import (
    Int8Weight,
    can_decode_int8,
    can_multiply_int8,
)

pytestmark = pytest.mark.skipif(
    not can_decode_int8(), reason="this build of torch has no products with 8-bit integers for CPUs"
)
needs_integer_products = pytest.mark.skipif(
    not can_multiply_int8(), reason="torch has no exact products of 8-bit integers for this CPU"
)
NUM_TOKENS = [0, 1, 3, 4, 5, 64, 65, 70]
"""On both sides of each limit between the kinds of products."""


@pytest.fixture(params=[True, False], ids=["integer products", "no integer products"])
def has_integer_products(request: Any, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not can_multiply_int8():
        pytest.skip("torch has no exact products of 8-bit integers for this CPU")
    monkeypatch.setattr(int8_weight, "can_multiply_int8", lambda: request.param)
    return bool(request.param)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def rounded(weight: Tensor) -> Tensor:
    """What 8-bit integers and a scale in bfloat16 keep of each row."""
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / 127).bfloat16().float()
    return (weight.float() / scale).round() * scale


@pytest.mark.usefixtures("has_integer_products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_columns", [48, 41])
def test_results_are_those_of_the_rounded_weight(dtype: torch.dtype, num_columns: int) -> None:
    weight, bias = drawn(37, num_columns).to(dtype), drawn(37).to(dtype)
    for own_bias in (None, bias):
        product = Int8Weight(weight, own_bias)
        for num_tokens in NUM_TOKENS:
            activations = drawn(num_tokens, 1, num_columns).to(dtype)
            expected = activations.float() @ rounded(weight).T
            expected = expected if own_bias is None else expected + own_bias.float()
            result = product(activations)
            assert result.dtype is dtype
            assert result.shape == (num_tokens, 1, 37)
            # Half of the error that the rounding of the weight itself makes.
            assert (result.float() - expected).norm() <= 0.0035 * expected.norm()


@needs_integer_products
@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
def test_an_exact_product_keeps_15_bits_of_activations(num_tokens: int) -> None:
    activations = drawn(num_tokens, 24) * torch.logspace(-9, 9, num_tokens)[:, None]
    result = Int8Weight(torch.eye(24) * 127, None, is_exact=True)(activations) / 127
    errors = (result - activations).abs()
    assert (errors <= activations.abs().amax(dim=1, keepdim=True) / 2**15).all()


def test_a_large_weight_is_converted_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, activations = drawn(40, 32), drawn(70, 32)
    expected = Int8Weight(weight, None)(activations)
    monkeypatch.setattr(int8_weight, "_TILE_ELEMENTS", 7 * 32)
    torch.testing.assert_close(Int8Weight(weight, None)(activations), expected)


def test_activations_may_start_at_any_address() -> None:
    weight, many = drawn(40, 32), drawn(1, 64).bfloat16()
    product = Int8Weight(weight.bfloat16(), None)
    for start in range(32):
        part = many[:, start : start + 32]
        assert torch.equal(product(part), product(part.clone()))


@pytest.mark.usefixtures("has_integer_products")
@pytest.mark.parametrize("num_tokens", [3, 9, 70])
@pytest.mark.parametrize("damage", [math.nan, math.inf, -math.inf])
def test_a_damaged_token_has_no_finite_result_and_damages_no_other(
    damage: float, num_tokens: int
) -> None:
    product, activations = Int8Weight(drawn(40, 24).abs() + 1, None), drawn(num_tokens, 24)
    expected = product(activations)
    activations[1, 5] = damage
    result = product(activations)
    others = [index for index in range(num_tokens) if index != 1]
    assert not result[1].isfinite().any()
    assert torch.equal(result[others], expected[others])


@pytest.mark.usefixtures("has_integer_products")
@pytest.mark.parametrize("num_tokens", [2, 9, 70])
def test_zeros_stay_zeros(num_tokens: int) -> None:
    weight = drawn(40, 24)
    weight[3] = 0
    assert not Int8Weight(weight, None)(torch.zeros(num_tokens, 24)).any()
    assert not Int8Weight(weight, None)(drawn(num_tokens, 24))[:, 3].any()
