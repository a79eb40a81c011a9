"""The language model: a Llama under other names."""

from __future__ import annotations

from vlcore import Checkpoint, LanguageModel, renamed


def load_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model as a Llama.

    ``tie_word_embeddings`` is a key of config.json itself, not of its ``text_config``.
    """
    config = {
        **checkpoint.config["text_config"],
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": checkpoint.config.get("tie_word_embeddings", False),
    }
    tensors = renamed(checkpoint, {"model.text_model.": "model.", "lm_head.": "lm_head."})
    return LanguageModel(checkpoint, config, tensors)
