"""A random LLaVA 1.5 checkpoint, as large as a real one or tiny."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STORED_DTYPE = "float16"
NUM_SHARDS = 4
TOWER, PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."
CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
TINY_CLIP = CLIP | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "image_size": 28,
}
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": 10,
    "vocab_size": 32064,
}
TINY_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 256,
}


def write_checkpoint(
    directory: Path,
    clip: Mapping[str, int],
    llama: Mapping[str, int],
    storage: str,
    **options: Any,
) -> None:
    """Write random weights, with a part of the vision tensors in each shard."""
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **clip},
        text_config={"model_type": "llama", **llama},
        architectures=["LlavaForConditionalGeneration"],
        dtype=STORED_DTYPE,
        **options,
    )
    config.save_pretrained(directory)
    with init_empty_weights():
        shapes = {
            name: tensor.shape
            for name, tensor in LlavaForConditionalGeneration(config).state_dict().items()
        }
    vision = [name for name in shapes if name.startswith((TOWER, PROJECTOR))]
    text = [name for name in shapes if name not in set(vision)]
    dtype = getattr(torch, STORED_DTYPE)
    stem = "model" if storage == "safetensors" else "pytorch_model"
    weight_map: dict[str, str] = {}
    for number in range(NUM_SHARDS):
        names = [name for part in (text, vision) for name in _share(part, number)]
        tensors = {name: torch.empty(shapes[name], dtype=dtype).normal_(0, 0.02) for name in names}
        path = directory / f"{stem}-{number + 1:05}-of-{NUM_SHARDS:05}.{storage}"
        if storage == "safetensors":
            save_file(tensors, path, {"format": "pt"})
        else:
            torch.save(tensors, path)
        weight_map |= dict.fromkeys(names, path.name)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"{stem}.{storage}.index.json").write_text(json.dumps(index))


def _share(names: Sequence[str], number: int) -> Sequence[str]:
    return names[number * len(names) // NUM_SHARDS : (number + 1) * len(names) // NUM_SHARDS]
