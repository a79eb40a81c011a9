"""A weight in 8-bit integers, and its matrix products on a CPU.

Torch has three ways to multiply with such a weight, which are fastest for different numbers of
tokens. All of them read it in the same order, so that it is stored once.
``benchmarks/quantization.py`` measures their effect.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlcore.engines.transformers.cpu_linear import aligned, fast_dtype, gives

_MAX_DECODED = 4
"""Up to so many tokens, the product in bfloat16 reads the weight once."""
_MAX_INTEGER = 64
"""For more tokens, the conversion of the weight takes less time than that of the activations."""
_TILE_ELEMENTS = 2**23
"""A weight is converted in tiles of about this many elements."""
_COLUMNS = 16
"""The product in bfloat16 reads so many columns at a time."""
_HIGH, _LOW = 127, 254
"""An activation is ``scale * (high + low / _LOW)``, where both are integers up to _HIGH."""
_LEAST = torch.finfo(torch.float32).tiny


class Int8Weight:
    """A weight in 8-bit integers with one scale per row.

    - For up to 4 tokens, activations are rounded to bfloat16, and so are the results.
    - For up to 64, each token's activations are rounded to 16 bits, which are two 8-bit integers
      times a scale. The integers of both are multiplied in one product. Without exact products of
      8-bit integers, this is not used.
    - For more, the weight is converted to bfloat16, or to float32 if the CPU is faster with it.

    Shapes:
        weight: [out_features, in_features].
        bias: [out_features].
        result of a call: [..., out_features], in the dtype of the input.

    Args:
        is_exact: never round to bfloat16. Few tokens need products of 8-bit integers then.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, is_exact: bool = False) -> None:
        num_rows, num_columns = weight.shape
        self._num_padded = -num_columns % _COLUMNS
        self._weight = weight.new_zeros(num_rows, num_columns + self._num_padded, dtype=torch.int8)
        # The product in bfloat16 takes scales in bfloat16.
        self._scale = weight.new_empty(num_rows, dtype=torch.bfloat16)
        start = 0
        for tile in torch.split(weight, self._rows_per_tile):
            stop = start + len(tile)
            highest = tile.abs().amax(dim=1).float()
            self._scale[start:stop] = (highest / _HIGH).clamp_(min=_LEAST)
            scale = self._scale[start:stop, None].float()
            self._weight[start:stop, :num_columns] = (tile / scale).round_()
            start = stop
        self._wide_scale = self._scale.float()
        self._bias = bias
        self._has_integer_products = can_multiply_int8()
        self._max_decoded = 0 if is_exact else _MAX_DECODED
        self._dtype = torch.float32 if is_exact else fast_dtype()

    def __call__(self, activations: Tensor) -> Tensor:  # noqa: D102
        tokens = activations.reshape(-1, activations.shape[-1])
        if self._num_padded:
            tokens = nn.functional.pad(tokens, (0, self._num_padded))
        if 0 < len(tokens) <= self._max_decoded:
            result = self._decode(tokens)
        elif 0 < len(tokens) <= _MAX_INTEGER and self._has_integer_products:
            result = self._multiply_integers(tokens)
        else:
            result = self._convert_back(tokens)
        result = result.to(activations.dtype)
        if self._bias is not None:
            result += self._bias
        return result.view(*activations.shape[:-1], len(self._weight))

    @property
    def _rows_per_tile(self) -> int:
        return max(1, _TILE_ELEMENTS // self._weight.shape[1])

    def _decode(self, tokens: Tensor) -> Tensor:
        return _product_in_bfloat16(tokens.bfloat16(), self._weight, self._scale)

    def _multiply_integers(self, tokens: Tensor) -> Tensor:
        wide = tokens.float()
        # NaN and infinity remain in the scale, and make all of the token's results NaN or infinite.
        scale = torch.linalg.vector_norm(wide, torch.inf, 1, True).clamp_(min=_LEAST).div_(_HIGH)
        scaled = wide / scale
        high = scaled.round()
        low = scaled.sub_(high).mul_(_LOW).round_()
        product = torch._int_mm(torch.cat([high, low]).to(torch.int8), self._weight.t())
        both = product.view(2, *tokens.shape[:1], -1).float()
        result = torch.add(both[0], both[1], alpha=1 / _LOW).mul_(scale)
        return result.mul_(self._wide_scale)

    def _convert_back(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self._dtype)
        tiles = [
            nn.functional.linear(tokens, tile.to(self._dtype))
            for tile in torch.split(self._weight, self._rows_per_tile)
        ]
        result = tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=-1)
        return result.mul_(self._scale if self._dtype is torch.bfloat16 else self._wide_scale)


def _product_in_bfloat16(tokens: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    product: Any = torch.ops.aten._weight_int8pack_mm.default
    return cast("Tensor", product(aligned(tokens), weight, scale))


@cache
def can_decode_int8() -> bool:
    """Return whether this build of torch multiplies bfloat16 with 8-bit integers on a CPU."""
    weight = torch.arange(-32, 32).repeat(8, 1).to(torch.int8)
    tokens = torch.eye(3, 64).bfloat16()
    scale = torch.full((8,), 0.5, dtype=torch.bfloat16)
    expected = weight[:, :3].t() * scale
    return gives(lambda: _product_in_bfloat16(tokens, weight, scale), expected)


@cache
def can_multiply_int8() -> bool:
    """Return whether torch multiplies 8-bit integers exactly, and fast, on this CPU.

    Without instructions for them (VNNI, AMX), sums of two large products may overflow.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    integers = torch.full((5, 64), 127, dtype=torch.int8)
    weight = torch.full((16, 64), 127, dtype=torch.int8)
    expected = torch.full((5, 16), 64 * 127 * 127, dtype=torch.int32)
    return gives(lambda: torch._int_mm(integers, weight.t()), expected)
