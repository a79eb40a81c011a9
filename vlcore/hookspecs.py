"""The plugin contract: the four hooks of a plugin module.

A plugin is a distribution with entry points in the group ``vlcore.architectures``. The name of
each entry point is an ``architectures`` string of a checkpoint's ``config.json``, its value the
plugin module::

    [project.entry-points."vlcore.architectures"]
    SomeModelForConditionalGeneration = "vl_plugin_some"

The module implements every hook below, each marked with :data:`hookimpl`. It imports torch only
inside the hooks, so that looking at plugins stays cheap. A hook may leave out arguments it does
not need.

What may change, and how it is announced, is in ``docs/contract.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import pluggy

if TYPE_CHECKING:
    import torch

    from vlcore._utils.device_map import DeviceMap, MaxMemory
    from vlcore.checkpoint.checkpoint import Checkpoint
    from vlcore.checkpoint.files import CheckpointFiles
    from vlcore.language.model import LanguageModel
    from vlcore.prompts.chat_template import ChatTemplate
    from vlcore.vision.model import VisionModel

__all__ = [
    "ENTRY_POINT_GROUP",
    "PROJECT_NAME",
    "SERVES_GROUP",
    "hookimpl",
    "hookspec",
    "vl_chat_template",
    "vl_language_model",
    "vl_match",
    "vl_vision_model",
]

PROJECT_NAME = "vlcore"
ENTRY_POINT_GROUP = "vlcore.architectures"
SERVES_GROUP = "vlcore.serves"
"""Entry points whose names are known models of the conformance kit that the package serves too."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec(firstresult=True)
def vl_match(  # type: ignore[empty-body]
    config: Mapping[str, Any], files: CheckpointFiles
) -> Literal[True] | str:
    """Say whether a checkpoint belongs to this plugin.

    Two families can share one ``architectures`` name, so a match is positive evidence (a known
    projector *and* a known tower), never "not the others". The directory's name is no evidence.

    Args:
        config: the checkpoint's ``config.json`` as plain JSON.
        files: the checkpoint's other small files, such as the configuration of a vision encoder
            in a folder of its own. There are none where only a configuration is known.

    Returns:
        ``True``, or the reason why not in words that are shown to the user.
    """


@hookspec(firstresult=True)
def vl_vision_model(  # type: ignore[empty-body]
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    device_map: DeviceMap | None,
    max_memory: MaxMemory | None,
) -> VisionModel:
    """Load the vision part: tower, projector and whatever turns an image into rows.

    It reads none of the language model's tensors and needs no tokenizer.

    Args:
        checkpoint: the opened checkpoint.
        device: where the weights go.
        dtype: the floating dtype of weights and rows.
        device_map: how to spread a tower that does not fit on one device, as accelerate knows it,
            or ``None``. A plugin whose hook leaves this out refuses one by leaving it out.
        max_memory: what the tower may use of each device, or ``None``; goes with ``device_map``.
            Where the hook leaves this out, vlcore refuses one.
    """


@hookspec(firstresult=True)
def vl_chat_template(checkpoint: Checkpoint, name: str | None) -> ChatTemplate:  # type: ignore[empty-body]
    """Give the chat template of the checkpoint.

    Where answers can point at regions of a picture, the template may also find these
    (:meth:`~vlcore.ChatTemplate.regions`).

    Args:
        checkpoint: the opened checkpoint.
        name: the one of several templates that the user chose, or ``None`` to pick the
            checkpoint's own. An unknown name is an :class:`~vlcore.OptionError` that lists the
            known ones. Where the hook leaves this out, vlcore refuses every name.
    """


@hookspec(firstresult=True)
def vl_language_model(checkpoint: Checkpoint) -> LanguageModel:  # type: ignore[empty-body]
    """Describe the text part as a standard architecture. Reads no weights yet.

    Args:
        checkpoint: the opened checkpoint.
    """
