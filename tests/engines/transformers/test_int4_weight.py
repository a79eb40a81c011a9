from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vlcore.engines.transformers import int4_weight
from vlcore.engines.transformers.int4_weight import (
    Int4Weight,
    block_size,
    pack,
    rounded,
    unpack,
)

needs_products = pytest.mark.skipif(
    block_size() is None, reason="torch has no fast products with 4-bit integers for this CPU"
)
NUM_TOKENS = [0, 1, 5, 32, 33, 40]
"""On both sides of the limit between the two kinds of products."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def restored(weight: Tensor) -> Tensor:
    """What 4-bit integers, and a scale and an offset for each 64 columns, keep of a weight."""
    result = torch.zeros_like(weight)
    for start in range(0, weight.shape[1], 64):
        group = weight[:, start : start + 64]
        lowest, highest = group.amin(1, keepdim=True), group.amax(1, keepdim=True)
        if group.shape[1] < 64:  # zeros are added
            lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
        scale = ((highest - lowest) / 15).bfloat16().float()
        offset = (lowest + 8 * scale).bfloat16().float()
        integers = ((group - offset) / scale).round().clamp(-8, 7)
        result[:, start : start + 64] = integers * scale + offset
    return result


@needs_products
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(128, 128), (37, 100)], ids=str)
def test_results_are_those_of_the_rounded_weight(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight, bias = drawn(*shape).to(dtype), drawn(shape[0]).to(dtype)
    for own_bias in (None, bias):
        product = Int4Weight(weight, own_bias)
        for num_tokens in NUM_TOKENS:
            activations = drawn(num_tokens, 1, shape[1]).to(dtype)
            expected = activations.float() @ restored(weight.float()).T
            expected = expected if own_bias is None else expected + own_bias.float()
            result = product(activations)
            assert result.dtype is dtype
            assert result.shape == (num_tokens, 1, shape[0])
            # The rounding of the weight itself makes errors of 0.09.
            assert (result.float() - expected).norm() <= 0.005 * expected.norm()


def test_rounding_keeps_the_lowest_and_highest_value_of_a_group() -> None:
    weight = drawn(8, 192) * torch.logspace(-6, 6, 8)[:, None]
    integers, scales = rounded(weight)
    assert (integers.view(8, 3, 64).amin(2) == 0).all()
    assert (integers.view(8, 3, 64).amax(2) == 15).all()
    scale, offset = scales.float().transpose(0, 1).unbind(2)
    groups = (integers.view(8, 3, 64).float() - 8) * scale[..., None] + offset[..., None]
    errors = (groups - weight.view(8, 3, 64)).abs().amax(2)
    assert (errors <= 0.6 * scale).all()


@pytest.mark.parametrize("size", [32, 64])
def test_packed_integers_are_unpacked(size: int) -> None:
    integers = torch.randint(16, (128, 64), generator=torch.Generator().manual_seed(0))
    packed = pack(integers.to(torch.uint8), size)
    assert packed.shape == (128, 32)
    assert torch.equal(unpack(packed, size), integers.to(torch.uint8))


@needs_products
def test_a_large_weight_is_converted_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, activations = drawn(150, 64), drawn(40, 64)
    expected = Int4Weight(weight, None)(activations)
    monkeypatch.setattr(int4_weight, "_TILE_ELEMENTS", 1)
    torch.testing.assert_close(Int4Weight(weight, None)(activations), expected)


@needs_products
@pytest.mark.parametrize("num_tokens", [3, 40])
def test_equal_weights_and_damaged_tokens(num_tokens: int) -> None:
    product, activations = Int4Weight(torch.full((64, 64), 3.0), None), drawn(num_tokens, 64)
    activations[1, 5] = math.nan
    result = product(activations)
    others = [index for index in range(num_tokens) if index != 1]
    assert result[1].isnan().all()
    expected = 3 * activations[others].sum(1, keepdim=True).expand(-1, 64)
    torch.testing.assert_close(result[others], expected, atol=0.2, rtol=0.01)
