"""LLaVA's language model: Llama or Mistral with their standard tensor names."""

from __future__ import annotations

from vl_plugin_llava.parts import is_hf
from vlcore import Checkpoint, LanguageModel, renamed
from vlcore.flat_layout import FlatLanguageModel

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}


def load_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model of a checkpoint in the original or in llava-hf's layout."""
    config = checkpoint.config
    if is_hf(config):
        return _read_hf(checkpoint)
    model_type = "mistral" if "LlavaMistralForCausalLM" in config["architectures"] else "llama"
    return FlatLanguageModel.read(
        checkpoint, model_type=model_type, architecture=_ARCHITECTURES[model_type]
    )


def _read_hf(checkpoint: Checkpoint) -> LanguageModel:
    config = checkpoint.config
    text = dict(config.get("text_config") or {})
    # A key that is absent here has the default of the language model's class, as in transformers,
    # which ties the embeddings if either of the configurations states it.
    if config.get("tie_word_embeddings"):
        text["tie_word_embeddings"] = True
    for key in ("torch_dtype", "dtype", "quantization_config"):
        if key in config:
            text.setdefault(key, config[key])
    tensors = renamed(
        checkpoint,
        {
            "language_model.": "",
            "model.language_model.": "model.",
            "lm_head.": "lm_head.",
        },
    )
    model_type = text.setdefault("model_type", "llama")
    text["architectures"] = [_ARCHITECTURES[model_type]]
    return LanguageModel(checkpoint, text, tensors)
