"""A small Llama, and checkpoints with its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoints import write_json
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from vlcore import Checkpoint

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 40,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
CONFIG = SIZES | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
TEXT = {name: name for name in ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")}
IDS = torch.tensor([[1, 7, 30, 2, 9]])


def logits(model: PreTrainedModel) -> Tensor:
    """Compute the logits of ``IDS``."""
    with torch.inference_mode():
        result: Tensor = model(input_ids=IDS).logits
    return result


def stored_tensors(reference: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors of a model, and two that are not of the language model."""
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    tensors["model.vision.weight"] = torch.ones(3)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    return tensors


def write(directory: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    """Write a checkpoint of these tensors."""
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    write_json(directory / "config.json", {"architectures": ["MadeUp"]})
    return Checkpoint.open(directory)
