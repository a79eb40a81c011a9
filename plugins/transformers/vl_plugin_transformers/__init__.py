"""The families of vision-language models that transformers ships, for vlcore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from vl_plugin_transformers.families import reason_against
from vlcore import hookimpl

if TYPE_CHECKING:
    import torch

    from vlcore import ChatTemplate, Checkpoint, LanguageModel, VisionModel


@hookimpl
def vl_match(config: Mapping[str, Any]) -> Literal[True] | str:
    """Match a known model type with the architecture that transformers has for it."""
    return reason_against(config) or True


@hookimpl
def vl_vision_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> VisionModel:
    """Load the vision encoder and the projector."""
    from vl_plugin_transformers.vision import TransformersVisionModel

    return TransformersVisionModel(checkpoint, device, dtype)


@hookimpl
def vl_chat_template(checkpoint: Checkpoint) -> ChatTemplate:
    """Return the checkpoint's own chat template."""
    from vl_plugin_transformers.template import load_chat_template

    return load_chat_template(checkpoint)


@hookimpl
def vl_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model as its standard architecture, where it has one."""
    from vl_plugin_transformers.language import load_language_model

    return load_language_model(checkpoint)
