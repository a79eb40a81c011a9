"""Linear layers as torch computes them fastest on a CPU, for few tokens at a time.

``nn.Linear`` keeps its weight as it is stored. oneDNN has an order of its own, into which it would
bring the weight in each call. Here that is done once. ``benchmarks/engine.py`` measures the effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from vlcore._utils.device import has_native_bfloat16
from vlcore.engines.transformers.operators import Operator, matrix_product

_TYPICAL_BATCH = 64
"""oneDNN chooses the order of a packed weight by a number of tokens. The order for 64 is also good
for all others."""
_ALIGNMENT = 32
"""In bytes."""

Product: TypeAlias = Callable[[Tensor], Tensor]
"""Multiplies activations [..., in_features] with a weight, and adds a bias."""


class PackedWeight:
    """A weight in float32 or bfloat16, in the order in which oneDNN reads it.

    Shapes:
        weight: [out_features, in_features].
        bias: [out_features].
        result of a call: [..., out_features], in the dtype of the input.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_BATCH)
        self._bias = bias

    def __call__(self, activations: Tensor) -> Tensor:  # noqa: D102
        product: Any = torch.ops.mkldnn._linear_pointwise
        return cast("Tensor", product(activations, self._weight, self._bias, "none", [], ""))


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this CPU and this build of torch have oneDNN's products of a dtype."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    activations = torch.eye(3, 16, dtype=dtype)
    weight = torch.arange(256.0).view(16, 16).to(dtype)
    return gives(lambda: PackedWeight(weight, None)(activations), weight.T[:3])


def gives(compute: Callable[[], Tensor], expected: Tensor) -> bool:
    """Return whether torch can compute something, and the result is as expected."""
    try:
        with torch.inference_mode():
            return torch.allclose(compute().float(), expected.float(), rtol=1e-4)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def aligned(tokens: Tensor) -> Tensor:
    """Return tokens as torch's products with integers need them: contiguous and
    aligned in memory."""
    tokens = tokens.contiguous()
    return tokens.clone() if tokens.data_ptr() % _ALIGNMENT else tokens


@cache
def fast_dtype() -> torch.dtype:
    """Return the dtype in which this CPU multiplies many tokens fastest."""
    return torch.bfloat16 if has_native_bfloat16() else torch.float32


class SharedProduct:
    """One matrix product for several layers that are given the same input.

    Args:
        product: multiplies with the weights of all layers, one below the other.
        sizes: the number of output features of each layer.
    """

    def __init__(self, product: Product, sizes: Sequence[int]) -> None:
        self._product = product
        self._operator = Operator(product)
        self._sizes = list(sizes)
        self._input: Tensor | None = None
        self._results: list[Tensor | None] = []

    def result(self, index: int, activations: Tensor) -> Tensor:
        """Return the result of one layer, and compute those of all if the input is a new one."""
        if torch.compiler.is_compiling():
            # merge_equal_products lets the layers share it.
            handle, num_all = self._operator.handle, sum(self._sizes)
            results = torch.split(matrix_product(activations, handle, num_all), self._sizes, dim=-1)
            return results[index].contiguous()
        # Kept until each layer was called, so that another tensor cannot have its identity.
        if activations is not self._input or self._results[index] is None:
            self._results = list(torch.split(self._product(activations), self._sizes, dim=-1))
            self._input = activations
        result, self._results[index] = cast("Tensor", self._results[index]), None
        if not any(one is not None for one in self._results):
            self._input = None
        return result.contiguous()


class CpuLinear(nn.Module):
    """Takes the place of ``nn.Linear``, one of those with a common product.

    Args:
        shared: the product.
        index: the layer's index among those of the product.
        in_features: number of input features.
        out_features: number of output features.
    """

    def __init__(
        self, shared: SharedProduct, index: int, in_features: int, out_features: int
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self._shared = shared
        self._index = index

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Multiply with the weight, and add the bias.

        Shapes:
            input: [..., in_features].
            result: [..., out_features].
        """
        return self._shared.result(self._index, input)

    def extra_repr(self) -> str:
        """Describe the layer as ``nn.Linear`` does."""
        return f"in_features={self.in_features}, out_features={self.out_features}"
