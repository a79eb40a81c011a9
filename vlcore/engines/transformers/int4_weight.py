"""A weight in 4-bit integers, and its matrix products on a CPU.

``benchmarks/quantization.py`` measures their effect.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlcore.engines.transformers.cpu_linear import aligned, fast_dtype, gives

GROUP_SIZE = 64
"""Number of columns that have a scale and an offset in common."""
_HIGHEST = 15
_CENTER = 8
"""torch's product subtracts it from each integer."""
_MAX_DECODED = 32
"""For more tokens, it takes less time to convert the weight back."""
_TILE_ELEMENTS = 2**23
"""A weight is converted in tiles of about this many elements."""
_BLOCK_SIZES = (64, 32)
"""torch's product reads so many rows together: with AVX-512, and with AVX2."""
_LEAST = torch.finfo(torch.float32).tiny


class Int4Weight:
    """A weight in 4-bit integers; 64 columns of a row have a scale and an offset in common.

    - For up to 32 tokens, activations are rounded to bfloat16, and so are the results.
    - For more, the weight is converted to bfloat16, or to float32 if the CPU is faster with it.

    Shapes:
        weight: [out_features, in_features].
        bias: [out_features].
        result of a call: [..., out_features], in the dtype of the input.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._num_rows, num_columns = weight.shape
        self._num_padded = -num_columns % GROUP_SIZE
        self._block_size = block_size() or _BLOCK_SIZES[0]
        width = num_columns + self._num_padded
        height = self._num_rows + -self._num_rows % self._block_size
        self._integers = torch.empty(height, width // 2, dtype=torch.uint8)
        # [groups, rows, 2]: the scales and the offsets
        self._scales = torch.empty(width // GROUP_SIZE, height, 2, dtype=torch.bfloat16)
        start = 0
        for tile in torch.split(weight, self._rows_per_tile):
            padded = nn.functional.pad(
                tile.float(), (0, self._num_padded, 0, -len(tile) % self._block_size)
            )
            stop = start + len(padded)
            integers, self._scales[:, start:stop] = rounded(padded)
            self._integers[start:stop] = pack(integers, self._block_size)
            start = stop
        self._bias = bias

    def __call__(self, activations: Tensor) -> Tensor:  # noqa: D102
        tokens = activations.reshape(-1, activations.shape[-1])
        if self._num_padded:
            tokens = nn.functional.pad(tokens, (0, self._num_padded))
        if 0 < len(tokens) <= _MAX_DECODED:
            result = _product(tokens.bfloat16(), self._integers, self._scales)
        else:
            result = self._convert_back(tokens.to(fast_dtype()))
        if result.shape[1] != self._num_rows:
            result = result[:, : self._num_rows]
        result = result.to(activations.dtype)
        if self._bias is not None:
            result = result + self._bias
        return result.reshape(*activations.shape[:-1], self._num_rows)

    @property
    def _rows_per_tile(self) -> int:
        num_blocks = _TILE_ELEMENTS // (2 * self._integers.shape[1] * self._block_size)
        return max(1, num_blocks) * self._block_size

    def _convert_back(self, tokens: Tensor) -> Tensor:
        scales = self._scales.transpose(0, 1).to(tokens.dtype)
        results = []
        for integers, scale in zip(
            torch.split(self._integers, self._rows_per_tile),
            torch.split(scales, self._rows_per_tile),
            strict=True,
        ):
            wide = unpack(integers, self._block_size).to(tokens.dtype)
            groups = wide.view(*scale.shape[:2], GROUP_SIZE).sub_(_CENTER)
            groups = torch.addcmul(scale[..., 1:], groups, scale[..., :1])
            results.append(nn.functional.linear(tokens, groups.flatten(1)))
        return results[0] if len(results) == 1 else torch.cat(results, dim=-1)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each group of columns to integers of 0 to 15.

    The weight is about ``(integer - 8) * scale + offset``.

    Shapes:
        weight: [rows, columns] float32.
        result: [rows, columns] uint8; scales and offsets [groups, rows, 2] bfloat16.
    """
    groups = weight.view(len(weight), -1, GROUP_SIZE)
    lowest, highest = groups.aminmax(dim=2, keepdim=True)
    scale = ((highest - lowest) / _HIGHEST).clamp_(min=_LEAST).bfloat16()
    offset = (lowest + _CENTER * scale).bfloat16()
    integers = ((groups - offset) / scale).round_().add_(_CENTER).clamp_(0, _HIGHEST)
    scales = torch.cat([scale, offset], dim=2).transpose(0, 1)
    return integers.to(torch.uint8).flatten(1), scales


def pack(integers: Tensor, block_size: int) -> Tensor:
    """Bring 4-bit integers into the order in which torch's product reads them.

    A byte has those of two rows, which are half a block apart, and a block's bytes are stored
    column by column.

    Shapes:
        integers: [rows, columns] uint8; the number of rows is a multiple of the block size.
        result: [rows, columns / 2] uint8.
    """
    num_columns = integers.shape[1]
    blocks = integers.view(-1, 2, block_size // 2, num_columns)
    packed = blocks[:, 0] | (blocks[:, 1] << 4)
    return packed.transpose(1, 2).contiguous().view(-1, num_columns // 2)


def unpack(packed: Tensor, block_size: int) -> Tensor:
    """Return the integers that were given to :func:`pack`."""
    num_rows, half = packed.shape
    blocks = packed.view(-1, 2 * half, block_size // 2).transpose(1, 2).contiguous()
    integers = packed.new_empty(len(blocks), 2, block_size // 2, 2 * half)
    torch.bitwise_and(blocks, _HIGHEST, out=integers[:, 0])
    torch.bitwise_right_shift(blocks, 4, out=integers[:, 1])
    return integers.view(num_rows, 2 * half)


def _product(tokens: Tensor, integers: Tensor, scales: Tensor) -> Tensor:
    product: Any = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return cast("Tensor", product(aligned(tokens), integers, GROUP_SIZE, scales))


@cache
def block_size() -> int | None:
    """Return how many rows torch's product reads together; ``None`` if it is slow on this CPU."""
    for size in _BLOCK_SIZES:
        integers = torch.arange(size * GROUP_SIZE).view(size, GROUP_SIZE) // 7 % 16
        tokens = torch.eye(3, GROUP_SIZE).bfloat16()
        scales = torch.tensor([0.5, 1.0]).bfloat16().repeat(1, size, 1)
        expected = (integers[:, :3].t() - _CENTER) * 0.5 + 1
        packed = pack(integers.to(torch.uint8), size)
        if gives(lambda: _product(tokens, packed, scales), expected):  # noqa: B023
            return size
    return None
