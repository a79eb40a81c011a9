"""The model as plain modules, their names those of a LLaVA checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sizes:
    """Every size of the model."""

    vocabulary: int
    image: int = 128
    patch: int = 16
    tower_width: int = 128
    tower_inner: int = 512
    tower_layers: int = 6
    tower_heads: int = 4
    width: int = 128
    inner: int = 384
    layers: int = 4
    heads: int = 4

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image // self.patch


class TowerAttention(nn.Module):
    """Attention of the vision encoder: all patches see each other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class TowerMlp(nn.Module):
    """Two linear layers around the quick GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        x = self.fc1(x)
        out: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))
        return out


class TowerLayer(nn.Module):
    """One block of the vision encoder."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.tower_width
        self.self_attn = TowerAttention(width, sizes.tower_heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = TowerMlp(width, sizes.tower_inner)
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


def _sinusoids(grid: int, width: int) -> Tensor:
    """Two-dimensional positions [1 + grid * grid, width] to start the embedding from."""
    steps = torch.arange(grid).float()
    rates = torch.exp(-math.log(100.0) * torch.arange(width // 4) / (width // 4))
    waves = torch.cat([(steps[:, None] * rates).sin(), (steps[:, None] * rates).cos()], dim=1)
    down = waves[:, None, :].expand(grid, grid, -1)
    across = waves[None, :, :].expand(grid, grid, -1)
    table = torch.cat([down, across], dim=-1).reshape(grid * grid, width)
    return torch.cat([torch.zeros(1, width), table])


class TowerEmbeddings(nn.Module):
    """Patches, the class token and positions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.tower_width
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, sizes.patch, sizes.patch, bias=False)
        self.position_embedding = nn.Embedding(1 + sizes.grid**2, width)
        with torch.no_grad():
            self.position_embedding.weight.copy_(0.5 * _sinusoids(sizes.grid, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, S, S] -> [B, 1 + patches, D]."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        positions: Tensor = self.position_embedding.weight
        return torch.cat([first, patches], dim=1) + positions


class TowerEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TowerLayer(sizes) for _ in range(sizes.tower_layers))


class Tower(nn.Module):
    """A CLIP vision encoder, read at its last layer without the class token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = TowerEmbeddings(sizes)
        self.pre_layrnorm = nn.LayerNorm(sizes.tower_width)
        self.encoder = TowerEncoder(sizes)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, S, S, 3] uint8 -> [B, patches, D]."""
        pixels = (images.float() / 255.0 - torch.tensor(MEAN)) / torch.tensor(STD)
        x = self.pre_layrnorm(self.embeddings(pixels.permute(0, 3, 1, 2)))
        for layer in self.encoder.layers:
            x = layer(x)
        patches: Tensor = x[:, 1:]
        return patches


class RmsNorm(nn.Module):
    """Root mean square normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    """Llama attention over given keys and values besides its own."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_proj = nn.Linear(sizes.width, sizes.width, bias=False)
        self.k_proj = nn.Linear(sizes.width, sizes.width, bias=False)
        self.v_proj = nn.Linear(sizes.width, sizes.width, bias=False)
        self.o_proj = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        before: tuple[Tensor, Tensor] | None,
        skip: int,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, T, D] -> [B, T - skip, D] and this layer's keys and values."""
        q, k, v = (
            layer(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.q_proj, x[:, skip:]), (self.k_proj, x), (self.v_proj, x))
        )
        q, k = _rotate(q, *(wave[..., skip:, :] for wave in turn)), _rotate(k, *turn)
        own = (k, v)
        if before is not None:
            k = torch.cat([before[0].expand(len(x), -1, -1, -1), k], dim=2)
            v = torch.cat([before[1].expand(len(x), -1, -1, -1), v], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), own


class Mlp(nn.Module):
    """The gated layer of Llama."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.inner, bias=False)
        self.down_proj = nn.Linear(sizes.inner, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One block of the language model."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = Mlp(sizes)
        self.input_layernorm = RmsNorm(sizes.width)
        self.post_attention_layernorm = RmsNorm(sizes.width)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        before: tuple[Tensor, Tensor] | None = None,
        skip: int = 0,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B, T, D] -> [B, T - skip, D] and this layer's keys and values."""
        mixed, own = self.self_attn(self.input_layernorm(x), turn, mask, before, skip)
        x = x[:, skip:] + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), own


class Body(nn.Module):
    """What a LLaVA checkpoint keeps under `model`, but for the vision encoder's wrapper names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = RmsNorm(sizes.width)
        self.mm_projector = nn.Sequential(
            nn.Linear(sizes.tower_width, sizes.width),
            nn.GELU(),
            nn.Linear(sizes.width, sizes.width),
        )


class Network(nn.Module):
    """Vision encoder, projector and language model."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.vision_model = Tower(sizes)
        self.model = Body(sizes)
        self.lm_head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter.shape[1]))
            if name.endswith(
                ("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")
            ):
                nn.init.normal_(parameter, std=0.1 / math.sqrt(parameter.shape[1]))
        nn.init.normal_(self.model.embed_tokens.weight, std=0.3)

    def _turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [..., T] -> cosines and sines [..., 1, T, head]."""
        head = self.sizes.width // self.sizes.heads
        rates = 10000.0 ** (-torch.arange(0, head, 2).float() / head)
        angles = (positions[..., None].float() * rates).unsqueeze(-3)
        return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)

    def forward(
        self, patches: Tensor, prefix: Tensor, tokens: Tensor, branch: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Read several conversations about each image at once.

        The prefix is the same everywhere, so it is read once for the batch; the rows of an
        image are read once for all conversations about it. A conversation sees the prefix,
        the image and itself.

        Shapes: patches [B, R, D]; prefix [P]; tokens, branch and position [B, T]: token ids, the
        number of each token's conversation and its position in it. Gives the last hidden state
        [B, T, D] and the one in the middle, of the tokens.
        """
        body, num_prefix = self.model, len(prefix)
        rows = body.mm_projector(patches)
        num_rows = rows.shape[1]
        x = torch.cat([rows, body.embed_tokens(tokens)], dim=1)
        first = body.embed_tokens(prefix)[None]
        batch, length = x.shape[:2]

        spot = torch.arange(num_rows).expand(batch, -1) + num_prefix
        turn = self._turns(torch.cat([spot, position + num_prefix + num_rows], dim=1))
        first_turn = self._turns(torch.arange(num_prefix))
        kind = torch.cat([torch.full((batch, num_rows), -1), branch], dim=1)
        step = torch.arange(length)
        seen = (kind[:, :, None] == kind[:, None, :]) | (kind[:, None, :] == -1)
        seen &= step[:, None] >= step[None, :]
        seen = F.pad(seen, (num_prefix, 0), value=True)
        mask = torch.zeros(seen.shape).masked_fill_(~seen, -1e9)[:, None]

        middle, last = x, len(body.layers) - 1
        for number, layer in enumerate(body.layers):
            first_next, before = layer(first, first_turn)
            # Nothing reads the image's rows after the last layer.
            skip = num_rows if number == last else 0
            x, _ = layer(x, turn, mask[:, :, skip:], before, skip)
            first = first_next
            if number + 1 == len(body.layers) // 2:
                middle = x
        return body.norm(x), middle[:, num_rows:]
