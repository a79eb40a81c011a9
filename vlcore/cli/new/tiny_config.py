"""Tiny sizes for the configuration of a model of transformers, by the names of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EDGE = 56
"""Width and height of an image or a tile, in pixels."""
PATCH = 14
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 32,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 16,
    "image_size": EDGE,
    "patch_size": PATCH,
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "projection_dim": 32,
}
_VISUAL = ("vision", "visual", "vit", "image", "qformer", "perceiver")


def tiny_settings(config: Mapping[str, Any], *, is_visual: bool = False) -> dict[str, Any]:
    """Return the settings of a configuration that make it tiny.

    Args:
        config: the configuration with all defaults filled in.
        is_visual: whether it is that of a vision encoder.

    Returns:
        The settings that differ, and the ``model_type`` of each inner configuration.
    """
    sizes = _VISION if is_visual else _TEXT
    tiny: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and key.endswith("config"):
            visual = is_visual or any(part in key for part in _VISUAL)
            inner = tiny_settings(value, is_visual=visual)
            kind = {"model_type": value["model_type"]} if value.get("model_type") else {}
            tiny[key] = kind | inner
        elif key in sizes and isinstance(value, list | tuple):
            tiny[key] = [sizes[key]] * len(value)
        elif key in sizes and isinstance(value, int) and not isinstance(value, bool):
            tiny[key] = sizes[key]
    num_layers = tiny.get("num_hidden_layers", 2)
    for key in ("layer_types", "mlp_layer_types"):
        if isinstance(config.get(key), list) and config[key]:
            kinds = list(dict.fromkeys(config[key]))
            tiny[key] = (kinds * num_layers)[:num_layers]
    return tiny


def add_tiny_sections(tiny: dict[str, Any], text: Mapping[str, Any]) -> None:
    """Add sections of rotary frequencies for positions on three axes.

    Args:
        tiny: the tiny settings, to which they are added.
        text: the configuration of the language model.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0} | dict(
        text.get("rope_parameters") or {}
    )
    if any(isinstance(value, Mapping) for value in rope.values()):  # one for each type of layer
        return
    num_frequencies = int(_TEXT["head_dim"] * rope.get("partial_rotary_factor", 1.0)) // 2
    third = num_frequencies // 3
    rope["mrope_section"] = [num_frequencies - 2 * third, third, third]
    tiny.setdefault("text_config", {})["rope_parameters"] = rope
