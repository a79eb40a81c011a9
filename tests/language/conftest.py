"""A small Llama, and language models of checkpoints with its tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_llama import CONFIG, SIZES, TEXT, stored_tensors, write
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from vlcore import LanguageModel, TensorSource, renamed


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.train(False)
    return model


@pytest.fixture
def whole(tmp_path: Path, reference: PreTrainedModel) -> LanguageModel:
    """The language model under names of its own, next to other tensors."""
    checkpoint = write(tmp_path / "model", stored_tensors(reference))
    return LanguageModel(checkpoint, CONFIG, renamed(checkpoint, TEXT))


@pytest.fixture
def fused(tmp_path: Path, reference: PreTrainedModel) -> LanguageModel:
    """Keys and values in one tensor, and every name changed."""
    tensors = {f"text.{name}": tensor for name, tensor in stored_tensors(reference).items()}
    checkpoint = tmp_path / "model"
    sources = {}
    for name in reference.state_dict():
        sources[name] = TensorSource(f"text.{name}")
    for layer in range(SIZES["num_hidden_layers"]):
        stem = f"model.layers.{layer}.self_attn."
        parts = [tensors.pop(f"text.{stem}{part}_proj.weight") for part in "kv"]
        tensors[f"text.{stem}kv.weight"] = torch.cat(parts)
        rows = len(parts[0])
        for index, part in enumerate("kv"):
            sources[f"{stem}{part}_proj.weight"] = TensorSource(
                f"text.{stem}kv.weight", slice(index * rows, (index + 1) * rows)
            )
    return LanguageModel(write(checkpoint, tensors), CONFIG, sources)
