"""LLaVA's language model: Llama or Mistral under its own names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vl_plugin_llava.parts import is_hf
from vlcore import Checkpoint, LanguageModel, renamed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Keys of the original layout's config.json that say nothing of the text part.
_OTHER_KEYS = ("mm_", "tune_mm", "freeze_mm", "unfreeze_mm", "use_mm", "image_", "tokenizer_")


class LlavaLanguageModel(LanguageModel):
    """The text part of the original layout, with the release's tokenizer.

    Source: sentencepiece, which the release tokenises with, puts its dummy prefix before every
    chunk; the Metaspace step that transformers builds from ``tokenizer.model`` leaves it out
    before a chunk that begins with a space.
    """

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        from tokenizers import normalizers, pre_tokenizers

        # Not as config.json says: its model_type "llava" is llava-hf's to transformers.
        tokenizer = self.checkpoint.tokenizer(self.transformers_config)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return tokenizer
        step = backend.pre_tokenizer
        if (
            isinstance(step, pre_tokenizers.Metaspace)
            and step.prepend_scheme == "always"
            and backend.normalizer is None
        ):
            mark = step.replacement
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend(mark), normalizers.Replace(" ", mark)]
            )
            backend.pre_tokenizer = None
        return tokenizer


def load_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the text part of a checkpoint in the original or in llava-hf's layout."""
    if is_hf(checkpoint.config):
        return _read_hf(checkpoint)
    return _read_original(checkpoint)


def _read_original(checkpoint: Checkpoint) -> LanguageModel:
    text = {
        key: value for key, value in checkpoint.config.items() if not key.startswith(_OTHER_KEYS)
    }
    is_mistral = "LlavaMistralForCausalLM" in checkpoint.config["architectures"]
    tensors = renamed(
        checkpoint,
        {
            "lm_head.": "lm_head.",
            "model.embed_tokens.": "model.embed_tokens.",
            "model.layers.": "model.layers.",
            "model.norm.": "model.norm.",
        },
    )
    standard = _standard("mistral" if is_mistral else "llama")
    return LlavaLanguageModel(checkpoint, text | standard, tensors)


def _read_hf(checkpoint: Checkpoint) -> LanguageModel:
    config = checkpoint.config
    text = dict(config.get("text_config") or {})
    # A key that is absent here takes the default of the text model's class, as in transformers.
    for key in ("tie_word_embeddings", "torch_dtype", "dtype"):
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
    return LanguageModel(checkpoint, text | _standard(text.get("model_type", "llama")), tensors)


def _standard(model_type: str) -> dict[str, Any]:
    name = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[model_type]
    return {"model_type": model_type, "architectures": [name]}
