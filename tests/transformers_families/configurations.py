"""Tiny configurations: the defaults of a family's class with small sizes in place of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING

HIDDEN_SIZE = 64

_TEXT: dict[str, int] = {
    "attention_heads": 4,
    "d_model": HIDDEN_SIZE,
    "ffn_dim": 96,
    "first_k_dense_replace": 1,
    "global_head_dim": 16,
    "head_dim": 16,
    "hidden_size": HIDDEN_SIZE,
    "hidden_size_per_layer_input": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 64,
    "intermediate_size": 96,
    "intermediate_size_mlp": 96,
    "kv_lora_rank": 16,
    "layers": 2,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    "max_position_embeddings": 2048,
    "moe_intermediate_size": 32,
    "moe_num_experts": 4,
    "moe_num_shared_experts": 1,
    "n_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "num_kv_shared_layers": 0,
    "num_layers": 2,
    "num_local_experts": 4,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "shared_expert_intermediate_size": 32,
    "sliding_window": 32,
    "topk_group": 1,
    "v_head_dim": 16,
}
_VISION: dict[str, int] = {
    "depth": 2,
    "embed_dim": 32,
    "head_dim": 16,
    "hidden_dim": 32,
    "hidden_size": 32,
    "image_size": 56,
    "intermediate_size": 48,
    "mlp_dim": 48,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_layers": 2,
    "num_position_embeddings": 64,
    "out_hidden_size": HIDDEN_SIZE,
    "patch_size": 14,
    "projection_dim": 32,
    "spatial_patch_size": 14,
    "vision_output_dim": HIDDEN_SIZE,
    "window_size": 56,
}
_VISION_KEYS = ("audio", "image", "perceiver", "qformer", "vision", "visual", "vit", "vq_")
_SPECIAL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tiny_config(
    model_type: str,
    changes: Mapping[str, Any],
    *,
    vocabulary_size: int,
    arguments: Mapping[str, Any] | None = None,
) -> Any:
    """Return the configuration of a model of some hundred thousand parameters.

    ``arguments`` are given to the class before its sizes are replaced, ``changes`` after it.
    """
    config_class = CONFIG_MAPPING[model_type]
    sizes = {"vocab_size": vocabulary_size, "vocab_size_per_layer_input": vocabulary_size}
    values = config_class(**copy.deepcopy(dict(arguments or {}))).to_dict()
    _shrink(values, _TEXT | sizes, _VISION | sizes)
    _merge(values, copy.deepcopy(dict(changes)))
    return config_class(**values)


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Replace values by those of ``changes``, dictionaries item by item."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _shrink(values: dict[str, Any], sizes: Mapping[str, int], vision: Mapping[str, int]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and key.endswith("config"):
            _shrink(value, vision if any(part in key for part in _VISION_KEYS) else sizes, vision)
        elif key in sizes and isinstance(value, int | float) and not isinstance(value, bool):
            values[key] = sizes[key]
        elif key in _SPECIAL_IDS and value is not None:
            values[key] = _SPECIAL_IDS[key]
    for key in ("layer_types", "mlp_layer_types"):
        if kinds := values.get(key):
            count = values.get("num_hidden_layers", 2)
            values[key] = (list(dict.fromkeys(kinds)) * count)[:count]
    for key in ("architectures", "_name_or_path", "transformers_version"):
        values.pop(key, None)
    if isinstance(rope := values.get("rope_parameters") or values.get("rope_scaling"), dict):
        _shrink_sections(rope, values.get("head_dim") or 16)


def _shrink_sections(rope: dict[str, Any], head_dim: int) -> None:
    """Share the rotary dimensions of a small head among the axes of M-RoPE."""
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if sections := parameters.get("mrope_section"):
            half = int(head_dim * parameters.get("partial_rotary_factor", 1.0)) // 2
            rest = half // len(sections)
            parameters["mrope_section"] = [half - rest * (len(sections) - 1)] + [rest] * (
                len(sections) - 1
            )
