"""A tiny checkpoint of every plugin's family whose heads are of a size that TurboMind takes.

Widths and vocabularies are multiples of 64, as its kernels may ask for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import llava_tensors, write_json, write_llava, write_yi
from qwen_checkpoints import qwen_tensors, write_qwen
from safetensors.torch import load_file, save_file

_SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}


def _llava(directory: Path) -> Path:
    return write_llava(directory, vocab_size=704, torch_dtype="float16", **_SIZES)


def _qwen(directory: Path) -> Path:
    write_qwen(directory)
    config = json.loads((directory / "config.json").read_text())
    config["visual"]["output_dim"] = 256
    config |= {
        "hidden_size": 256,
        "intermediate_size": 1024,  # of both halves
        "num_attention_heads": 4,
        "kv_channels": 64,
        "num_hidden_layers": 2,
        "vocab_size": -(-config["vocab_size"] // 64) * 64,
    }
    write_json(directory / "config.json", config)
    save_file(qwen_tensors(config, seed=0), directory / "model.safetensors")
    return directory


def _yi(directory: Path) -> Path:
    write_yi(directory, vocab_size=960, torch_dtype="float16", **_SIZES)
    config = json.loads((directory / "config.json").read_text())
    (tower,) = (directory / "vit").glob("*/config.json")
    vision = json.loads(tower.read_text())
    tensors = {
        name: tensor
        for name, tensor in llava_tensors(config, vision, seed=1).items()
        if "vision_tower" not in name and "mm_projector" not in name and "newline" not in name
    }
    draw = torch.Generator().manual_seed(2)
    width = config["hidden_size"]
    for layer, shape in {"0": (width, config["mm_hidden_size"]), "3": (width, width)}.items():
        tensors[f"model.mm_projector.{layer}.weight"] = torch.randn(shape, generator=draw) / 8
        tensors[f"model.mm_projector.{layer}.bias"] = torch.randn(width, generator=draw) / 8
    for layer in ("1", "4"):
        tensors[f"model.mm_projector.{layer}.weight"] = torch.ones(width)
        tensors[f"model.mm_projector.{layer}.bias"] = torch.zeros(width)
    save_file(tensors, directory / "model.safetensors")
    return directory


_WRITERS: dict[str, Callable[[Path], Path]] = {"llava": _llava, "qwen": _qwen, "yi": _yi}
FAMILIES = tuple(_WRITERS)


def write_checkpoint(family: str, directory: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a checkpoint in half precision, as the large ones are."""
    _WRITERS[family](directory)
    file = directory / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    return directory
