"""Yi-VL for vlcore."""

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

_CLIP_MODEL_TYPES = ("clip", "clip_vision_model")
_PROJECTOR = re.compile(r"mlp[1-9]\d?x_gelu_Norm")


@hookimpl
def vl_match(config: Mapping[str, Any], files: CheckpointFiles) -> Literal[True] | str:
    """Match a projector with norms and a CLIP vision encoder, by its configuration or name."""
    projector = config.get("mm_projector_type")
    if not isinstance(projector, str) or not _PROJECTOR.fullmatch(projector):
        return f"its projector {projector!r} has no norms; Yi-VL's is mlp2x_gelu_Norm"
    tower = config.get("mm_vision_tower")
    if not isinstance(tower, str) or not tower:
        return "config.json names no vision encoder in mm_vision_tower"
    model_type = (files.read_json(f"{tower}/config.json") or {}).get("model_type")
    if model_type in _CLIP_MODEL_TYPES:
        return True
    if model_type is not None:
        return (
            f"its vision encoder {tower!r} is a {model_type!r} by the config.json of that folder; "
            f"known: {', '.join(_CLIP_MODEL_TYPES)}"
        )
    is_path = tower.startswith((".", "/", "~")) or not {"/", "\\"} & set(tower)
    if not is_path and "clip" not in tower.lower():
        return (
            f"its vision encoder {tower!r} is not known to be a CLIP model: its name does not say "
            "so, and the checkpoint has no folder of that name whose config.json has a model_type"
        )
    return True


@hookimpl
def vl_vision_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    device_map: DeviceMap | None,
    max_memory: MaxMemory | None,
) -> VisionModel:
    """Load encoder and projector."""
    from vl_plugin_yi.vision import load_vision_model

    return load_vision_model(
        checkpoint, device, dtype, device_map=device_map, max_memory=max_memory
    )


@hookimpl
def vl_chat_template(name: str | None) -> ChatTemplate:
    """Return the only template."""
    from vl_plugin_yi.template import load_chat_template

    return load_chat_template(name)


@hookimpl
def vl_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """Describe the language model as Llama."""
    from vl_plugin_yi.language import load_language_model

    return load_language_model(checkpoint)
