"""Idefics3 and SmolVLM: a SigLIP vision encoder, a pixel-shuffling connector and a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from vlcore import hookimpl

if TYPE_CHECKING:
    import torch

    from vlcore import ChatTemplate, Checkpoint, LanguageModel, VisionModel

_ARCHITECTURES = {
    "Idefics3ForConditionalGeneration": "idefics3",
    "SmolVLMForConditionalGeneration": "smolvlm",
}


@hookimpl
def vl_match(config: Mapping[str, Any]) -> Literal[True] | str:
    """Match Idefics3 and SmolVLM checkpoints whose language model is a Llama."""
    named = config.get("architectures") or []
    model_types = [_ARCHITECTURES[name] for name in named if name in _ARCHITECTURES]
    if not model_types:
        return f"its architectures are {named!r}, not one of {', '.join(_ARCHITECTURES)}"
    if config.get("model_type") not in model_types:
        return f"its model_type is {config.get('model_type')!r}, not {model_types[0]!r}"
    for part in ("vision_config", "text_config"):
        if not isinstance(config.get(part), Mapping):
            return f"its config.json has no {part}"
    text_type = config["text_config"].get("model_type", "llama")
    return True if text_type == "llama" else f"its language model is {text_type!r}, not 'llama'"


@hookimpl
def vl_vision_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> VisionModel:
    """Load the vision encoder and the connector."""
    from vl_plugin_idefics3.vision import Idefics3VisionModel

    return Idefics3VisionModel(checkpoint, device, dtype)


@hookimpl
def vl_chat_template(checkpoint: Checkpoint, name: str | None) -> ChatTemplate:
    """Return the checkpoint's own chat template, the only one there is."""
    from vl_plugin_idefics3.template import load_chat_template

    return load_chat_template(checkpoint, name)


@hookimpl
def vl_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model as a Llama."""
    from vl_plugin_idefics3.language import load_language_model

    return load_language_model(checkpoint)
