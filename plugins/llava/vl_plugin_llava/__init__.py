"""LLaVA 1.5 and 1.6 for vlcore, in the original layout and in llava-hf's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from vlcore import hookimpl

if TYPE_CHECKING:
    import torch

    from vlcore import (
        ChatTemplate,
        Checkpoint,
        CheckpointFiles,
        DeviceMap,
        LanguageModel,
        MaxMemory,
        VisionModel,
    )

_PROJECTOR = re.compile(r"linear|identity|mlp[1-9]\d?x_gelu")
_OTHER_TOWERS = re.compile(
    r"internvit|internvl|siglip|convnext|dino|(?<![a-z])eva(?![a-z])", re.IGNORECASE
)
_OTHER_OWNERS = ("opengvlab",)
_CLIP_MODEL_TYPES = ("clip", "clip_vision_model")
_HF_ARCHITECTURES = ("LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration")
_HF_TOWERS = ("clip_vision_model",)
_HF_TEXTS = ("llama", "mistral")


@hookimpl
def vl_match(config: Mapping[str, Any], files: CheckpointFiles) -> Literal[True] | str:
    """Match a known projector and a CLIP vision encoder."""
    if "vision_config" in config or "text_config" in config:
        return _match_hf(config)
    return _match_original(config, files)


@hookimpl
def vl_vision_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    device_map: DeviceMap | None,
    max_memory: MaxMemory | None,
) -> VisionModel:
    """Load encoder, projector and newline embedding."""
    from vl_plugin_llava.vision import load_vision_model

    return load_vision_model(
        checkpoint, device, dtype, device_map=device_map, max_memory=max_memory
    )


@hookimpl
def vl_chat_template(checkpoint: Checkpoint, name: str | None) -> ChatTemplate:
    """Return the named template, or the checkpoint's own."""
    from vl_plugin_llava.template import load_chat_template

    return load_chat_template(checkpoint, name)


@hookimpl
def vl_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model as Llama or Mistral."""
    from vl_plugin_llava.language import load_language_model

    return load_language_model(checkpoint)


def _match_original(config: Mapping[str, Any], files: CheckpointFiles) -> Literal[True] | str:
    tower = config.get("mm_vision_tower")
    if not isinstance(tower, str) or not tower:
        return "config.json names no vision encoder in mm_vision_tower"
    projector = config.get("mm_projector_type", "linear")
    if isinstance(projector, str) and "_Norm" in projector:
        return f"its projector {projector!r} is Yi-VL's; LLaVA's have no norms"
    if not isinstance(projector, str) or not _PROJECTOR.fullmatch(projector):
        return f"its projector {projector!r} is none of linear, mlpNx_gelu, identity"
    model_type = (files.read_json(f"{tower}/config.json") or {}).get("model_type")
    if model_type in _CLIP_MODEL_TYPES:
        return True
    if model_type is not None:
        return (
            f"its vision encoder {tower!r} is a {model_type!r} by the config.json of that folder; "
            f"known: {', '.join(_CLIP_MODEL_TYPES)}"
        )
    return _match_tower_name(tower)


def _match_tower_name(tower: str) -> Literal[True] | str:
    """Match an encoder by its name, if its configuration is not in the checkpoint."""
    owner, _, name = tower.replace("\\", "/").rstrip("/").rpartition("/")
    if owner.lower() in _OTHER_OWNERS:
        return f"its vision encoder {tower!r} is not a CLIP model (it is {owner}'s)"
    if found := _OTHER_TOWERS.search(name):
        return f"its vision encoder {tower!r} is not a CLIP model (it names {found[0]})"
    if not _is_clip_name(tower):
        return (
            f"its vision encoder {tower!r} is not known to be a CLIP model: its name does not say "
            "so, and the checkpoint has no folder of that name whose config.json has a model_type"
        )
    return True


def _is_clip_name(tower: str) -> bool:
    """The reference implementation's rule: a path, OpenAI's, LAION's, or "clip" in the name."""
    is_path = tower.startswith((".", "/", "~")) or not {"/", "\\"} & set(tower)
    return is_path or tower.startswith(("openai/", "laion/")) or "clip" in tower.lower()


def _match_hf(config: Mapping[str, Any]) -> Literal[True] | str:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not set(_HF_ARCHITECTURES) & set(architectures):
        return f"its architecture {architectures!r} is none of {', '.join(_HF_ARCHITECTURES)}"
    parts = {}
    for key, default in (("vision_config", "clip_vision_model"), ("text_config", "llama")):
        part = config.get(key)
        if part is None:
            part = {}
        if not isinstance(part, Mapping):
            return f"{key} of config.json must be an object, not {type(part).__name__}"
        parts[key] = part.get("model_type", default)
    if parts["vision_config"] not in _HF_TOWERS:
        return f"its vision encoder is a {parts['vision_config']!r}; known: {', '.join(_HF_TOWERS)}"
    if parts["text_config"] not in _HF_TEXTS:
        return f"its language model is a {parts['text_config']!r}; known: {', '.join(_HF_TEXTS)}"
    return True
