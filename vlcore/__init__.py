"""vlcore: a plugin framework for vision-language models.

Names below are imported when they are first used, so that ``import vlcore`` stays free of torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlcore._quiet import quieten_torchao
from vlcore._version import __version__
from vlcore.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    ContextLengthError,
    EngineClosedError,
    EngineError,
    EngineUnavailableError,
    ImageError,
    ImageLimitError,
    IncompatiblePluginError,
    NoPluginError,
    OptionError,
    PluginConflictError,
    PluginContractError,
    PluginError,
    PluginImportError,
    PromptError,
    TensorError,
    ViewError,
    VlcoreError,
)

if TYPE_CHECKING:
    from vlcore.checkpoint import Checkpoint, TensorSource
    from vlcore.checkpoint_files import CheckpointFiles
    from vlcore.encoder import ImageEncoder
    from vlcore.encoder_stats import EncoderStats
    from vlcore.engines.generation import GenerationConfig
    from vlcore.engines.transformers import TransformersEngineConfig
    from vlcore.hookspecs import hookimpl
    from vlcore.image_access import ImageAccess
    from vlcore.image_limits import ImageLimits
    from vlcore.jinja_template import JinjaTemplate
    from vlcore.language import LanguageModel, renamed
    from vlcore.loading import load_chat_template, load_language_model, load_vision_model
    from vlcore.media import load_image
    from vlcore.pipeline import Pipeline, pipeline
    from vlcore.regions import Region, draw_regions
    from vlcore.response import Response, Session
    from vlcore.template import (
        ChatTemplate,
        Control,
        ImageSlot,
        Message,
        RoleTemplate,
        Rows,
        Text,
        parse_messages,
    )
    from vlcore.view_cache import ViewCache
    from vlcore.vision import ImageInputs, ImageRows, VisionModel
    from vlcore.weights import empty_weights

_HOMES = {
    "Checkpoint": "checkpoint",
    "TensorSource": "checkpoint",
    "CheckpointFiles": "checkpoint_files",
    "ImageEncoder": "encoder",
    "EncoderStats": "encoder_stats",
    "GenerationConfig": "engines.generation",
    "TransformersEngineConfig": "engines.transformers",
    "hookimpl": "hookspecs",
    "ImageAccess": "image_access",
    "ImageLimits": "image_limits",
    "JinjaTemplate": "jinja_template",
    "LanguageModel": "language",
    "renamed": "language",
    "load_chat_template": "loading",
    "load_language_model": "loading",
    "load_vision_model": "loading",
    "load_image": "media",
    "Pipeline": "pipeline",
    "pipeline": "pipeline",
    "Region": "regions",
    "draw_regions": "regions",
    "Response": "response",
    "Session": "response",
    "ChatTemplate": "template",
    "Control": "template",
    "ImageSlot": "template",
    "Message": "template",
    "RoleTemplate": "template",
    "Rows": "template",
    "Text": "template",
    "parse_messages": "template",
    "ViewCache": "view_cache",
    "ImageInputs": "vision",
    "ImageRows": "vision",
    "VisionModel": "vision",
    "empty_weights": "weights",
}

__all__ = [
    "ChatTemplate",
    "Checkpoint",
    "CheckpointError",
    "CheckpointFiles",
    "CheckpointNotFoundError",
    "ConfigError",
    "ContextLengthError",
    "Control",
    "EncoderStats",
    "EngineClosedError",
    "EngineError",
    "EngineUnavailableError",
    "GenerationConfig",
    "ImageAccess",
    "ImageEncoder",
    "ImageError",
    "ImageInputs",
    "ImageLimitError",
    "ImageLimits",
    "ImageRows",
    "ImageSlot",
    "IncompatiblePluginError",
    "JinjaTemplate",
    "LanguageModel",
    "Message",
    "NoPluginError",
    "OptionError",
    "Pipeline",
    "PluginConflictError",
    "PluginContractError",
    "PluginError",
    "PluginImportError",
    "PromptError",
    "Region",
    "Response",
    "RoleTemplate",
    "Rows",
    "Session",
    "TensorError",
    "TensorSource",
    "Text",
    "TransformersEngineConfig",
    "ViewCache",
    "ViewError",
    "VisionModel",
    "VlcoreError",
    "__version__",
    "draw_regions",
    "empty_weights",
    "hookimpl",
    "load_chat_template",
    "load_image",
    "load_language_model",
    "load_vision_model",
    "parse_messages",
    "pipeline",
    "renamed",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"vlcore.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vlcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps ``vlcore.pipeline`` the function, also once the module of that name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "pipeline" and isinstance(value, ModuleType):
            value = value.pipeline
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
quieten_torchao()
