"""The CLIP vision encoder, with the key names of published checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlcore.errors import ConfigError

_COUNTS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP vision encoder; defaults as in ``CLIPVisionConfig``."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str) -> ClipConfig:
        """Read a CLIP or CLIP vision configuration.

        Raises:
            ConfigError: the configuration is of another kind of encoder, or impossible.
        """
        model_type = config.get("model_type", "clip_vision_model")
        if model_type == "clip":
            config = config.get("vision_config") or config.get("vision_config_dict") or {}
            if not isinstance(config, Mapping):
                raise ConfigError(f"{where}: vision_config must be an object; it is {config!r}")
        elif model_type != "clip_vision_model":
            raise ConfigError(f"{where} must describe a CLIP vision encoder, not a {model_type!r}")
        known = {key: config[key] for key in cls.__dataclass_fields__ if key in config}
        for key in _COUNTS:
            if key in known and (not isinstance(known[key], int) or known[key] < 1):
                raise ConfigError(
                    f"{where}: {key} must be a positive integer; it is {known[key]!r}"
                )
        clip = cls(**known)
        if clip.hidden_act not in _ACTIVATIONS:
            raise ConfigError(
                f"{where} has hidden_act {clip.hidden_act!r}; known: {', '.join(_ACTIVATIONS)}"
            )
        if clip.hidden_size % clip.num_attention_heads:
            raise ConfigError(
                f"{where}: hidden_size {clip.hidden_size} is not a multiple of "
                f"num_attention_heads {clip.num_attention_heads}"
            )
        return clip

    @property
    def grid_size(self) -> int:
        """The number of patches along each side."""
        return self.image_size // self.patch_size


class ClipTower(nn.Module):
    """CLIP's vision transformer up to a hidden state, without the norm after the trunk.

    Args:
        config: the sizes of the encoder.
        num_layers: the number of layers; later ones are neither loaded nor computed.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
    Supervision"; key names as in OpenAI's checkpoints on the Hugging Face Hub.
    """

    whole: ClassVar[tuple[type[nn.Module], ...]]
    """Modules that are never split between devices."""

    def __init__(self, config: ClipConfig, num_layers: int) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = _Encoder(config, num_layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode tiles.

        Shapes:
            pixels: [N, 3, S, S]; result: [N, 1 + (S / patch)², D], the class token first.
        """
        hidden: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return hidden


class _Embeddings(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.patch_embedding = nn.Conv2d(
            3, width, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.grid_size**2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding.weight


class _Encoder(nn.Module):
    def __init__(self, config: ClipConfig, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(num_layers))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class _Layer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = _Attention(width, config.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(width, eps)
        self.mlp = _Mlp(width, config.intermediate_size, config.hidden_act)
        self.layer_norm2 = nn.LayerNorm(width, eps)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        result: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return result


ClipTower.whole = (_Embeddings, _Layer)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            batch, tokens, _ = projected.shape
            return projected.view(batch, tokens, self.num_heads, -1).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            heads(self.q_proj(hidden)), heads(self.k_proj(hidden)), heads(self.v_proj(hidden))
        )
        projected: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return projected


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = _ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.fc2(self.activation(self.fc1(hidden)))
        return projected


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": F.gelu}
