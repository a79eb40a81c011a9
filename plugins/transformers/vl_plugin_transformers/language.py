"""The language model of a family as its standard architecture."""

from __future__ import annotations

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vl_plugin_transformers.modeling import EmptyModel
from vlcore import Checkpoint, LanguageModel, TensorSource


def load_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model of a checkpoint; no weights are read."""
    model = EmptyModel(checkpoint)
    text = model.config.get_text_config()
    config = {
        **text.to_dict(),
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text.model_type]],
        "tie_word_embeddings": "lm_head.weight" in model.module.all_tied_weights_keys,
        **model.family.text,
    }
    tensors = {}
    for name, key in model.names.items():
        if model.is_text(key):
            standard = f"model.{key.removeprefix(model.text_prefix)}"
            tensors[key if key.startswith("lm_head.") else standard] = TensorSource(name)
    return LanguageModel(checkpoint, config, tensors)
