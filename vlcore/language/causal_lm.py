"""Transformers models that continue text, without weights, from a text configuration."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast


def build_causal_lm(config: PretrainedConfig) -> PreTrainedModel:
    """Build the ``…ForCausalLM`` of a configuration, or else its text model with an output layer.

    Its attention is torch's own (SDPA), or "eager" where the class supports no other.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) in MODEL_MAPPING:
        return TextModelForCausalLM(config)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation=_attention(config, MODEL_FOR_CAUSAL_LM_MAPPING)
    )
    return model


def tied_keys(config: PretrainedConfig) -> dict[str, str]:
    """Return the tensors that the model of a configuration ties to others, if it ties any."""
    classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    model_class = classes.get(type(config), TextModelForCausalLM)
    return dict(model_class._tied_weights_keys or {})


class TextModelForCausalLM(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A text model of transformers, as it is part of vision-language models, with an output layer.

    Args:
        config: the configuration of the text model.
    """

    config_class = PretrainedConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: PretrainedConfig) -> None:
        config._attn_implementation = _attention(config, MODEL_MAPPING)
        super().__init__(config)
        self.model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, *, logits_to_keep: int | Tensor = 0, **inputs: Any) -> CausalLMOutputWithPast:
        """Compute the logits of the last positions, or of those with the given indexes.

        Shapes:
            logits: [prompts, kept tokens, vocab].
        """
        states = self.model(**inputs).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(logits=self.lm_head(states[:, kept]))


def _attention(config: PretrainedConfig, classes: Any) -> str:
    if type(config) not in classes:
        return "sdpa"
    return "sdpa" if classes[type(config)]._supports_sdpa else "eager"
