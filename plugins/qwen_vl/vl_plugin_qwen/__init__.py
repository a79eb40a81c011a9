"""Qwen-VL and Qwen-VL-Chat for vlcore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from vlcore import hookimpl

if TYPE_CHECKING:
    import torch

    from vlcore import ChatTemplate, Checkpoint, LanguageModel, VisionModel


@hookimpl
def vl_match(config: Mapping[str, Any]) -> Literal[True] | str:
    """Match a checkpoint with a visual block; text-only models share the architecture name."""
    visual = config.get("visual")
    if visual is None:
        return "config.json has no visual block: it is a text-only Qwen, which takes no images"
    if not isinstance(visual, Mapping):
        return f"visual in config.json must be an object, not {type(visual).__name__}"
    return True


@hookimpl
def vl_vision_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> VisionModel:
    """Load the vision transformer and its resampler."""
    from vl_plugin_qwen.vision import load_vision_model

    return load_vision_model(checkpoint, device, dtype)


@hookimpl
def vl_chat_template(checkpoint: Checkpoint, name: str | None) -> ChatTemplate:
    """Return the named template, or the checkpoint's own."""
    from vl_plugin_qwen.template import load_chat_template

    return load_chat_template(checkpoint, name)


@hookimpl
def vl_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model as Qwen2."""
    from vl_plugin_qwen.language import load_language_model

    return load_language_model(checkpoint)
