"""Write the network as a checkpoint in the original LLaVA layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from network import MEAN, STD, Network, Sizes
from safetensors.torch import save_file
from words import write_tokenizer

MAX_POSITIONS = 1024


def _config(sizes: Sizes) -> dict[str, Any]:
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": sizes.width,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "vocab_size": sizes.vocabulary,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "image_aspect_ratio": "pad",
        "mm_vision_tower": "clip",
        "mm_hidden_size": sizes.tower_width,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "unfreeze_mm_vision_tower": True,
        "use_mm_proj": True,
    }


def _clip_config(sizes: Sizes) -> dict[str, Any]:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": sizes.tower_width,
        "intermediate_size": sizes.tower_inner,
        "num_hidden_layers": sizes.tower_layers,
        "num_attention_heads": sizes.tower_heads,
        "image_size": sizes.image,
        "patch_size": sizes.patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 16,
    }
    text = {
        "model_type": "clip_text_model",
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "projection_dim": 16,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 16,
        "logit_scale_init_value": 2.6592,
        "initializer_factor": 1.0,
        "text_config": text,
        "vision_config": vision,
        "torch_dtype": "float16",
    }


def _preprocessor_config(sizes: Sizes) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": {"shortest_edge": sizes.image},
        "crop_size": {"height": sizes.image, "width": sizes.image},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def export(network: Network, tokenizer: bytes, out: Path) -> None:
    """Write every file next to `out` first, then put the whole directory in its place."""
    sizes = network.sizes
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    (new / "clip").mkdir(parents=True)
    tensors = {}
    for name, tensor in network.state_dict().items():
        if name.startswith("vision_model."):
            name = "model.vision_tower.vision_tower." + name
        tensors[name] = tensor.detach().half().contiguous()
    # Part of every CLIP vision encoder; LLaVA never applies it.
    last = "model.vision_tower.vision_tower.vision_model.post_layernorm."
    tensors[last + "weight"] = torch.ones(sizes.tower_width, dtype=torch.float16)
    tensors[last + "bias"] = torch.zeros(sizes.tower_width, dtype=torch.float16)
    save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
    (new / "model.safetensors").chmod(0o644)
    _write_json(new / "config.json", _config(sizes))
    _write_json(new / "clip" / "config.json", _clip_config(sizes))
    _write_json(new / "clip" / "preprocessor_config.json", _preprocessor_config(sizes))
    write_tokenizer(tokenizer, new)
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)
