"""The language model of a family: a standard architecture, or the class without its encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from vl_plugin_transformers.modeling import EmptyModel
from vlcore import (
    Checkpoint,
    ConfigError,
    EngineUnavailableError,
    ImageLayout,
    LanguageModel,
    PromptInputs,
    TensorSource,
    TokenizedPrompt,
    grid_positions,
    image_groups,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OF_STANDARD_CLASSES = frozenset({"attention_groups"})
"""Features that the ``…ForCausalLM`` of a text configuration has as well."""


class FamilyLanguageModel(LanguageModel):
    """A language model with the features of its family."""

    def __init__(
        self,
        model: EmptyModel,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorSource],
    ) -> None:
        super().__init__(model.checkpoint, config, tensors)
        self.requires = model.family.requires
        self._num_layers = model.num_deepstack_layers

    @property
    def row_width(self) -> int:
        """The width of an embedding, followed by what is added after the first decoder layers."""
        return self.hidden_size * (1 + self._num_layers)

    def prompt_inputs(
        self, prompt: TokenizedPrompt, layouts: Sequence[ImageLayout]
    ) -> PromptInputs:
        """Return positions or attention groups of image embeddings, where a family has them."""
        if "mrope" in self.requires:
            return grid_positions(prompt, [image.layout.grid for image in layouts])
        if "attention_groups" in self.requires and prompt.spans:
            return PromptInputs(attention_groups=image_groups(prompt))
        return PromptInputs()


class MultimodalLanguageModel(FamilyLanguageModel):
    """The multimodal class without its vision encoder, where no standard class is the same."""

    @property
    def view_config(self) -> dict[str, Any]:
        """Refuse a text view.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"the language model of {self.checkpoint.name} ({self.architecture}) has no text view: "
            "no text-only class of transformers computes the same. Use the embedded engine"
        )

    def check_tensors(self) -> None:
        """Check that the checkpoint holds the tensors of the class, without reading them."""
        empty = self._empty()
        empty.tensors.check(empty.module)

    def to_transformers(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        *,
        progress: bool = False,
    ) -> PreTrainedModel:
        """Build the multimodal class without its vision encoder, ready for inference."""
        if "quantization_config" in self.checkpoint.config:
            raise EngineUnavailableError(
                f"the weights of {self.checkpoint.name} are quantised, and the embedded engine "
                "runs weights in floating point only. Use the checkpoint in half precision"
            )
        empty = self._empty()
        weight_dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        empty.tensors.load(empty.module, torch.device(device), weight_dtype, progress=progress)
        model: PreTrainedModel = empty.module
        model.tie_weights()
        if model.generation_config is not None:
            model.generation_config.eos_token_id = list(self.end_token_ids)
        return model

    def _empty(self) -> EmptyModel:
        empty = EmptyModel(self.checkpoint)
        empty.keep({empty.text_name})
        return empty


def load_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model of a checkpoint; no weights are read."""
    model = EmptyModel(checkpoint)
    text = model.config.get_text_config()
    config = {
        **text.to_dict(),
        "tie_word_embeddings": "lm_head.weight" in model.module.all_tied_weights_keys,
        **model.family.text,
    }
    if "quantization_config" in checkpoint.config:
        config["quantization_config"] = checkpoint.config["quantization_config"]
    sources = {
        key: TensorSource(name) for name, key in model.tensors.keys.items() if model.is_text(key)
    }
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)
    if (
        architecture is None
        or model.family.requires - _OF_STANDARD_CLASSES
        or any(map(model.tensors.is_converted, sources))
    ):
        config["architectures"] = [model.family.architecture]
        return MultimodalLanguageModel(model, config, sources)
    config["architectures"] = [architecture]
    prefix = model.text_prefix
    standard = {
        f"model.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: source
        for key, source in sources.items()
    }
    return FamilyLanguageModel(model, config, standard)
