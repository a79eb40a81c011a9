from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vlcore.engines.transformers.cpu_linear import (
    CpuLinear,
    PackedWeight,
    SharedProduct,
    can_pack,
)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 24), (3, 24), (2, 5, 24)], ids=str)
def test_a_packed_weight_gives_what_linear_gives(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    if not can_pack(dtype):
        pytest.skip(f"torch has no packed products in {dtype} for this CPU")
    weight, bias, activations = drawn(40, 24).to(dtype), drawn(40).to(dtype), drawn(*shape)
    for own_bias in (None, bias):
        result = PackedWeight(weight, own_bias)(activations.to(dtype))
        expected = nn.functional.linear(activations.to(dtype), weight, own_bias)
        assert result.dtype is dtype
        torch.testing.assert_close(
            result, expected, atol=1e-5 if dtype is torch.float32 else 0.1, rtol=0
        )


def test_other_dtypes_are_not_packed() -> None:
    assert not can_pack(torch.float64)
    assert not can_pack(torch.float16)


class Counting:
    """Multiplies with a weight, and counts the products."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.count = 0

    def __call__(self, activations: Tensor) -> Tensor:
        self.count += 1
        return nn.functional.linear(activations, self.weight)


def test_layers_of_one_input_are_computed_once() -> None:
    weight, activations = drawn(12, 24), drawn(3, 24)
    product = Counting(weight)
    shared = SharedProduct(product, [8, 4])
    first, second = CpuLinear(shared, 0, 24, 8), CpuLinear(shared, 1, 24, 4)
    for number in (1, 2):  # also where the next input is the same tensor
        for layer, rows in ((first, slice(8)), (second, slice(8, 12))):
            result = layer(activations)
            assert result.is_contiguous()
            torch.testing.assert_close(result, nn.functional.linear(activations, weight[rows]))
        assert product.count == number


def test_layers_called_with_different_inputs_get_their_own_results() -> None:
    weight = drawn(12, 24)
    shared = SharedProduct(Counting(weight), [8, 4])
    first, second = CpuLinear(shared, 0, 24, 8), CpuLinear(shared, 1, 24, 4)
    for one, other in ((drawn(3, 24), drawn(2, 24)), (drawn(4, 24), drawn(3, 24))):
        torch.testing.assert_close(first(one), nn.functional.linear(one, weight[:8]))
        torch.testing.assert_close(second(other), nn.functional.linear(other, weight[8:]))
        torch.testing.assert_close(first(one), nn.functional.linear(one, weight[:8]))
