"""The language model of a family, as its standard architecture where it has one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from vl_plugin_transformers.families import FAMILIES
from vl_plugin_transformers.modeling import EmptyModel, build, read_config, text_name
from vlcore import (
    Checkpoint,
    ConfigError,
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


class FamilyLanguageModel(LanguageModel):
    """A language model with the features of its family."""

    def __init__(
        self,
        model: EmptyModel,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorSource],
    ) -> None:
        super().__init__(model.checkpoint, config, tensors)
        self._num_layers = model.num_deepstack_layers
        unused = frozenset() if self._num_layers else frozenset({"deepstack"})
        self.requires = model.family.requires - unused

    @property
    def row_width(self) -> int:
        """The width of an embedding, followed by what is added after the first decoder layers."""
        return self.hidden_size * (1 + self._num_layers)

    def prompt_inputs(
        self, prompt: TokenizedPrompt, layouts: Sequence[ImageLayout]
    ) -> PromptInputs:
        """Return positions or attention groups of image embeddings, where a family has them."""
        if "mrope" in self.requires:
            return grid_positions(
                prompt,
                [image.layout.grid for image in layouts],
                time_steps=[image.layout.time_step for image in layouts],
                passes_time=False,
            )
        if "attention_groups" in self.requires and prompt.spans:
            return PromptInputs(attention_groups=image_groups(prompt))
        return PromptInputs()

    @property
    def view_config(self) -> dict[str, Any]:
        """``config.json`` of the text view.

        Raises:
            ConfigError: transformers has no text-only class that other engines could know.
        """
        if self.architecture != FAMILIES[self.checkpoint.config["model_type"]].architecture:
            return super().view_config
        raise ConfigError(
            f"the language model of {self.checkpoint.name} has no text view, because transformers "
            f"has no text-only class that computes what {self.architecture} does: use the embedded "
            "engine"
        )


class MultimodalLanguageModel(FamilyLanguageModel):
    """The multimodal class without its vision encoder, where no class has only its text model."""

    def build_model(self) -> PreTrainedModel:
        """Build the class without weights, and remove what is not the language model."""
        family = FAMILIES[self.checkpoint.config["model_type"]]
        module: PreTrainedModel = build(family, read_config(self.checkpoint))
        inner: Any = module.model
        for name, _ in list(inner.named_children()):
            if name != text_name(inner):
                setattr(inner, name, None)
        return module


def load_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model of a checkpoint; no weights are read."""
    model = EmptyModel(checkpoint)
    text = model.config.get_text_config()
    config = {
        **text.to_dict(),
        "architectures": [model.family.architecture],
        "tie_word_embeddings": "lm_head.weight" in model.module.all_tied_weights_keys,
        **model.family.text,
    }
    if "quantization_config" in checkpoint.config:
        config["quantization_config"] = checkpoint.config["quantization_config"]
    keys = {name: key for name, key in model.keys.items() if model.is_text(key)}
    standard: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    if model.family.needs_class or (standard is None and type(text) not in MODEL_MAPPING):
        sources = {key: TensorSource(name) for name, key in keys.items()}
        return MultimodalLanguageModel(model, config, sources)
    if standard is not None:
        config["architectures"] = [standard.__name__]
    prefix = re.compile(f"^{re.escape(model.text_prefix)}")
    sources = {prefix.sub("model.", key): TensorSource(name) for name, key in keys.items()}
    return FamilyLanguageModel(model, config, sources)
