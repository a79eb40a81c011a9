"""Yi-VL's language model: Llama with its standard tensor names."""

from __future__ import annotations

from vlcore import Checkpoint
from vlcore.flat_layout import FlatLanguageModel


def load_language_model(checkpoint: Checkpoint) -> FlatLanguageModel:
    """Describe the language model."""
    return FlatLanguageModel.read(checkpoint, model_type="llama", architecture="LlamaForCausalLM")
