"""The plugin contract: the four hooks of a plugin module.

A plugin is a distribution with entry points in the group ``vlcore.architectures``. The name of
each entry point is an ``architectures`` string of a checkpoint's ``config.json``, its value the
plugin module::

    [project.entry-points."vlcore.architectures"]
    SomeModelForConditionalGeneration = "vl_plugin_some"

A *generic* plugin serves the models of a whole library. It has its entry points in the group
``vlcore.generic`` instead, and is used only where no other installed plugin serves a checkpoint.

The module implements every hook below, each marked with :data:`hookimpl`. It imports torch only
inside the hooks, so that plugins can be listed quickly. A hook may leave out arguments that it
does not need.

``docs/contract.md`` states what may change, and how changes are announced.
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
    "GENERIC_GROUP",
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
GENERIC_GROUP = "vlcore.generic"
"""Entry points of this group register architectures as those of a generic plugin, which is used
where no plugin of ``ENTRY_POINT_GROUP`` serves a checkpoint."""
SERVES_GROUP = "vlcore.serves"
"""Entry points of this group name further known models of the conformance kit that are served."""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec(firstresult=True)
def vl_match(  # type: ignore[empty-body]
    config: Mapping[str, Any], files: CheckpointFiles
) -> Literal[True] | str:
    """Return whether a checkpoint belongs to this plugin.

    Two families can share one ``architectures`` name, so a match needs positive evidence (a known
    projector *and* a known vision encoder), never "not the others". The name of the directory is
    not evidence.

    Args:
        config: the checkpoint's ``config.json`` as plain JSON.
        files: the checkpoint's other small files, such as the configuration of a vision encoder
            in a folder of its own. It is empty if there is only a configuration.

    Returns:
        ``True``, or the reason why it does not, which is shown to the user.
    """


@hookspec(firstresult=True)
def vl_vision_model(  # type: ignore[empty-body]
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    device_map: DeviceMap | None,
    max_memory: MaxMemory | None,
) -> VisionModel:
    """Load the vision model: encoder, projector and everything else that image embeddings need.

    It reads no tensors of the language model and needs no tokenizer.

    Args:
        checkpoint: the opened checkpoint.
        device: the device of the weights.
        dtype: the floating-point dtype of weights and image embeddings.
        device_map: how to distribute a vision encoder that does not fit on one device, as in
            accelerate, or ``None``. If the hook leaves this argument out, vlcore rejects a
            ``device_map``.
        max_memory: the maximum memory of the encoder on each device, or ``None``; used with
            ``device_map``. If the hook leaves this argument out, vlcore rejects a ``max_memory``.
    """


@hookspec(firstresult=True)
def vl_chat_template(checkpoint: Checkpoint, name: str | None) -> ChatTemplate:  # type: ignore[empty-body]
    """Return the chat template of the checkpoint.

    If completions can refer to regions of an image, the template can also parse these
    (:meth:`~vlcore.ChatTemplate.regions`).

    Args:
        checkpoint: the opened checkpoint.
        name: the name of the template that the user chose, or ``None`` for the checkpoint's own.
            For an unknown name, raise an :class:`~vlcore.OptionError` that lists the known names.
            If the hook leaves this argument out, vlcore rejects every name.
    """


@hookspec(firstresult=True)
def vl_language_model(checkpoint: Checkpoint) -> LanguageModel:  # type: ignore[empty-body]
    """Describe the language model as a standard architecture. No weights are read yet.

    Args:
        checkpoint: the opened checkpoint.
    """
