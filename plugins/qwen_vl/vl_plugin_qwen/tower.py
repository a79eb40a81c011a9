"""The vision transformer and its resampler, with the key names of the published checkpoints.

Source: ``visual.py`` of the Qwen-VL reference implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlcore import ConfigError

TABLE_SIZE = 16
"""The number of positions along each side of the stored tables, and of queries along each side of
the result."""
NUM_QUERIES = TABLE_SIZE**2
_POOL_HEAD_WIDTH = 128
_EPS = 1e-6
_COUNTS = ("heads", "image_size", "layers", "output_dim", "patch_size", "width")


@dataclass(frozen=True)
class VisualConfig:
    """Sizes of the vision encoder: the ``visual`` block of ``config.json``."""

    heads: int
    image_size: int
    layers: int
    mlp_ratio: float
    output_dim: int
    patch_size: int
    width: int

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str) -> VisualConfig:
        """Read a ``visual`` block.

        Raises:
            ConfigError: a key is missing, or the sizes are inconsistent.
        """
        if missing := [key for key in cls.__dataclass_fields__ if key not in config]:
            raise ConfigError(f"{where} lacks {', '.join(missing)}; it has {sorted(config)}")
        for key in _COUNTS:
            value = config[key]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{where}: {key} must be a positive integer; it is {value!r}")
        ratio = config["mlp_ratio"]
        if not isinstance(ratio, int | float) or isinstance(ratio, bool) or ratio <= 0:
            raise ConfigError(f"{where}: mlp_ratio must be a positive number; it is {ratio!r}")
        sizes = cls(**{key: config[key] for key in cls.__dataclass_fields__})
        if sizes.width % sizes.heads:
            raise ConfigError(
                f"{where}: width {sizes.width} is not a multiple of heads {sizes.heads}"
            )
        if sizes.output_dim % _POOL_HEAD_WIDTH:
            raise ConfigError(
                f"{where}: output_dim {sizes.output_dim} is not a multiple of {_POOL_HEAD_WIDTH}, "
                "the width of the resampler's heads"
            )
        if sizes.image_size < sizes.patch_size:
            raise ConfigError(
                f"{where}: an image of {sizes.image_size} pixels holds no patch of "
                f"{sizes.patch_size}"
            )
        return sizes

    @property
    def grid_size(self) -> int:
        """The number of patches along each side."""
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        """The width between the two layers of an MLP."""
        return int(self.width * self.mlp_ratio)


class VisualTower(nn.Module):
    """A transformer over the patches of an image, resampled to :data:`NUM_QUERIES` embeddings.

    Call :meth:`stretch_positions` once after the weights are loaded.
    """

    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        width, rows_width = config.width, config.output_dim
        self._grid_size = config.grid_size
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.empty(NUM_QUERIES, width))
        self.ln_pre = nn.LayerNorm(width, _EPS)
        self.transformer = _Transformer(config)
        self.attn_pool = _Resampler(width, rows_width)
        self.ln_post = nn.LayerNorm(rows_width, _EPS)
        self.proj = nn.Parameter(torch.empty(rows_width, rows_width))

    def stretch_positions(self) -> None:
        """Interpolate the tables of 16 x 16 positions to the grid of patches."""
        stretched = _stretch(self.positional_embedding, self._grid_size)
        self.positional_embedding = nn.Parameter(stretched, requires_grad=False)
        self.attn_pool.key_positions = _stretch(self.attn_pool.pos_embed, self._grid_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Shapes:
            pixels: [N, 3, S, S]; result: [N, 256, output_dim].
        """
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        hidden = self.transformer(self.ln_pre(patches + self.positional_embedding))
        rows: Tensor = self.ln_post(self.attn_pool(hidden)) @ self.proj
        return rows


class _Transformer(nn.Module):
    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(config) for _ in range(config.layers))

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.resblocks:
            hidden = block(hidden)
        return hidden


class _Block(nn.Module):
    def __init__(self, config: VisualConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, _EPS)
        self.attn = _Attention(config.width, config.heads)
        self.ln_2 = nn.LayerNorm(config.width, _EPS)
        self.mlp = _Mlp(config.width, config.mlp_width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden))
        result: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return result


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, tokens, _ = hidden.shape
        # The rows of in_proj are q, k and v of the first head, then of the second, and so on.
        by_head = self.in_proj(hidden).view(batch, tokens, self.num_heads, 3, -1)
        query, key, value = by_head.permute(3, 0, 2, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return projected


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, inner)
        self.c_proj = nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.c_proj(F.gelu(self.c_fc(hidden)))
        return projected


class _Resampler(nn.Module):
    """One cross-attention from learned queries to all patches; only the keys have positions."""

    key_positions: Tensor

    def __init__(self, width: int, rows_width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(NUM_QUERIES, rows_width))
        self.register_buffer("key_positions", None, persistent=False)
        self.query = nn.Parameter(torch.empty(NUM_QUERIES, rows_width))
        self.kv_proj = (
            nn.Identity() if width == rows_width else nn.Linear(width, rows_width, bias=False)
        )
        self.attn = _PoolAttention(rows_width)
        self.ln_q = nn.LayerNorm(rows_width, _EPS)
        self.ln_kv = nn.LayerNorm(rows_width, _EPS)

    def forward(self, hidden: Tensor) -> Tensor:
        values = self.ln_kv(self.kv_proj(hidden))
        query = self.ln_q(self.query) + self.pos_embed
        rows: Tensor = self.attn(query, values + self.key_positions, values)
        return rows


class _PoolAttention(nn.Module):
    """Multi-head attention under the key names of ``nn.MultiheadAttention``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend.

        Shapes:
            query: [Q, D], the same for all images; keys, values: [N, T, D]; result: [N, Q, D].
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        # The query is projected once, not once for each image.
        inputs = (query.expand(1, -1, -1), keys, values)
        query, keys, values = (
            projected.view(len(projected), projected.shape[1], -1, _POOL_HEAD_WIDTH).transpose(1, 2)
            for projected in map(F.linear, inputs, weights, biases)
        )
        query = query.expand(len(keys), -1, -1, -1)
        mixed = F.scaled_dot_product_attention(query, keys, values)
        result: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return result


def _stretch(table: Tensor, grid_size: int) -> Tensor:
    """Interpolate a position table, in float32.

    Shapes:
        table: [256, D]; result: [grid_size², D].
    """
    if grid_size == TABLE_SIZE:
        return table.detach()
    image = table.detach().float().T.reshape(1, -1, TABLE_SIZE, TABLE_SIZE)
    stretched = F.interpolate(image, (grid_size, grid_size), mode="bicubic", align_corners=False)
    return stretched.flatten(2)[0].T.contiguous().to(table.dtype)
