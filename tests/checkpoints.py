"""Tiny random checkpoints, complete with tokenizer, written to a directory of a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2

GOLDEN = Path(__file__).parent / "golden"
TOKENIZER = GOLDEN / "tokenization_llava"
IMAGE_SIZE = 28
NUM_ROWS = 4


def write_llava(directory: Path, *, seed: int = 0, **config: Any) -> Path:
    """Write a LLaVA 1.5 checkpoint of a few thousand parameters: 28 pixels, 4 rows an image."""
    directory.mkdir(parents=True, exist_ok=True)
    values = json.loads((GOLDEN / "llava15" / "config.json").read_text())
    values |= {"vocab_size": 700, "max_position_embeddings": 512} | config
    write_json(directory / "config.json", values)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, directory / file)
    tower = directory / "clip"
    tower.mkdir(exist_ok=True)
    clip = json.loads((GOLDEN / "llava15" / "clip" / "config.json").read_text())
    clip["vision_config"]["image_size"] = IMAGE_SIZE
    write_json(tower / "config.json", clip)
    processor = json.loads((GOLDEN / "llava15" / "clip" / "preprocessor_config.json").read_text())
    write_json(
        tower / "preprocessor_config.json",
        processor | {"size": IMAGE_SIZE, "crop_size": IMAGE_SIZE},
    )
    save_file(llava_tensors(values, clip["vision_config"], seed), directory / "model.safetensors")
    return directory


def write_yi(directory: Path, *, seed: int = 0, **config: Any) -> Path:
    """Write the golden Yi-VL checkpoint with a tokenizer, and an embedding for its 900 tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copytree(GOLDEN / "yi_vl" / "vit", directory / "vit", dirs_exist_ok=True)
    values = json.loads((GOLDEN / "yi_vl" / "config.json").read_text())
    values |= {"vocab_size": 900, "max_position_embeddings": 1024} | config
    write_json(directory / "config.json", values)
    write_tokenizer(directory, has_dummy_prefix=True)
    tensors = load_file(GOLDEN / "yi_vl" / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.randn(values["vocab_size"], 64, generator=generator) / 8
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_tokenizer(directory: Path, *, has_dummy_prefix: bool, **config: Any) -> Path:
    """Write a sentencepiece model of 900 tokens without BOS, with a dummy prefix or without."""
    source = GOLDEN / "tokenization_nobos"
    model: Any = getattr(sentencepiece_model_pb2, "ModelProto")()  # noqa: B009
    model.ParseFromString((source / "tokenizer.model").read_bytes())
    model.normalizer_spec.add_dummy_prefix = has_dummy_prefix
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.SerializeToString())
    settings = json.loads((source / "tokenizer_config.json").read_text())
    write_json(directory / "tokenizer_config.json", settings | config)
    return directory


def llava_tensors(
    config: dict[str, Any], vision: dict[str, Any], seed: int
) -> dict[str, torch.Tensor]:
    """Draw the tensors of a checkpoint in the original layout, the vision encoder among them."""
    generator = torch.Generator().manual_seed(seed)
    width, inner = config["hidden_size"], config["intermediate_size"]
    tower, tower_inner = vision["hidden_size"], vision["intermediate_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    heads = config["num_attention_heads"]
    key_width = width // heads * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "lm_head.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
        "model.mm_projector.0.weight": (width, tower),
        "model.mm_projector.0.bias": (width,),
        "model.mm_projector.2.weight": (width, width),
        "model.mm_projector.2.bias": (width,),
        "model.image_newline": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (width, width),
            f"{prefix}self_attn.k_proj.weight": (key_width, width),
            f"{prefix}self_attn.v_proj.weight": (key_width, width),
            f"{prefix}self_attn.o_proj.weight": (width, width),
            f"{prefix}mlp.gate_proj.weight": (inner, width),
            f"{prefix}mlp.up_proj.weight": (inner, width),
            f"{prefix}mlp.down_proj.weight": (width, inner),
            f"{prefix}input_layernorm.weight": (width,),
            f"{prefix}post_attention_layernorm.weight": (width,),
        }
    root = "model.vision_tower.vision_tower.vision_model."
    patch = vision["patch_size"]
    shapes |= {
        f"{root}embeddings.class_embedding": (tower,),
        f"{root}embeddings.patch_embedding.weight": (tower, 3, patch, patch),
        f"{root}embeddings.position_embedding.weight": (patches + 1, tower),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{root}{name}.weight": (tower,), f"{root}{name}.bias": (tower,)}
    for layer in range(vision["num_hidden_layers"]):
        prefix = f"{root}encoder.layers.{layer}."
        sizes = {f"self_attn.{n}_proj": (tower, tower) for n in ("q", "k", "v", "out")}
        sizes |= {"mlp.fc1": (tower_inner, tower), "mlp.fc2": (tower, tower_inner)}
        for name, size in sizes.items():
            shapes |= {f"{prefix}{name}.weight": size, f"{prefix}{name}.bias": size[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{prefix}{name}.weight": (tower,), f"{prefix}{name}.bias": (tower,)}

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        return 1 + noise / 10 if "norm" in name and name.endswith("weight") else noise / 8

    return {name: draw(name, shape) for name, shape in shapes.items()}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
