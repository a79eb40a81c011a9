"""Loads a single stage of a checkpoint through its plugin, without the other stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from vlcore._utils.device import as_device, as_dtype
from vlcore._utils.device_map import DeviceMap, MaxMemory
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.errors import ConfigError, PluginContractError, VlcoreError
from vlcore.language.features import check_features
from vlcore.language.model import LanguageModel
from vlcore.plugins.registry import Plugin, find_plugin
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.jinja_template import JinjaTemplate
from vlcore.vision.model import VisionModel

_T = TypeVar("_T")


class ModelStages:
    """A checkpoint and the plugin that serves it, from which each stage is loaded.

    Args:
        model: a directory, a Hub repo id, or an opened checkpoint.
        plugin: the distribution to use if several plugins serve the checkpoint, or an imported
            plugin, which is used without a call of its ``vl_match``.
        revision: a branch, tag or commit of a Hub repository.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        PluginError: no plugin serves it, or several do.
    """

    def __init__(
        self,
        model: str | Path | Checkpoint,
        *,
        plugin: str | Plugin | None = None,
        revision: str | None = None,
    ) -> None:
        self.checkpoint = (
            model if isinstance(model, Checkpoint) else Checkpoint.open(model, revision=revision)
        )
        self.plugin: Plugin = (
            plugin
            if isinstance(plugin, Plugin)
            else find_plugin(self.checkpoint.config, files=self.checkpoint.files, plugin=plugin)
        )

    def vision_model(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
        *,
        device_map: DeviceMap | None = None,
        max_memory: MaxMemory | None = None,
    ) -> VisionModel:
        """Load the vision model; the default dtype is float32.

        On the meta device, its weights have shapes but no values.
        """
        is_meta = isinstance(device, torch.device) and device.type == "meta"
        target = torch.device(device) if is_meta else as_device(device)
        weight_dtype = as_dtype(dtype) or torch.float32
        if device_map is None and max_memory is not None:
            device_map = "auto"
        with self._attributing_errors("vl_vision_model"):
            model = self.plugin.vision_model(
                self.checkpoint, target, weight_dtype, device_map, max_memory
            )
        vision_model = self._expect(model, VisionModel, "vl_vision_model")
        if not isinstance(getattr(vision_model, "hidden_size", None), int):
            raise PluginContractError(
                f"{type(vision_model).__name__} of plugin {self.plugin.info.distribution} must "
                "set hidden_size, the width of its image embeddings"
            )
        vision_model.fingerprint = vision_model.fingerprint or self.checkpoint.fingerprint
        return vision_model

    def chat_template(self, name: str | None = None) -> ChatTemplate:
        """Load the checkpoint's chat template, or the named one.

        Raises:
            ConfigError: the template of the checkpoint omits what the user writes.
            OptionError: the plugin has no template with this name, or no named templates.
        """
        with self._attributing_errors("vl_chat_template"):
            template = self.plugin.chat_template(self.checkpoint, name)
        template = self._expect(template, ChatTemplate, "vl_chat_template")
        if isinstance(template, JinjaTemplate) and template.omits_user_text:
            raise ConfigError(
                f"the chat template of {self.checkpoint.name} omits the texts of the user: correct "
                "it, or choose another one with chat_template"
            )
        return template

    def language_model(self) -> LanguageModel:
        """Describe the language model; no weights are read."""
        with self._attributing_errors("vl_language_model"):
            language_model = self.plugin.language_model(self.checkpoint)
        language_model = self._expect(language_model, LanguageModel, "vl_language_model")
        check_features(language_model.requires, self.checkpoint.name)
        return language_model

    @contextmanager
    def _attributing_errors(self, hook: str) -> Iterator[None]:
        """Convert an unexpected error of a hook to one that names the hook and the plugin."""
        try:
            yield
        except VlcoreError:
            raise
        except Exception as error:
            raise PluginContractError(
                f"{hook} of plugin {self.plugin.info.distribution} {self.plugin.info.version} "
                f"failed on {self.checkpoint.name}: {type(error).__name__}: {error}"
            ) from error

    def _expect(self, value: object, expected: type[_T], hook: str) -> _T:
        if isinstance(value, expected):
            return value
        raise PluginContractError(
            f"{hook} of plugin {self.plugin.info.distribution} {self.plugin.info.version} must "
            f"return a {expected.__name__}; it returned {type(value).__name__}"
        )


def load_vision_model(
    model: str | Path | Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    *,
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    plugin: str | None = None,
    revision: str | None = None,
) -> VisionModel:
    """Load only the vision model: no tokenizer and no weights of the language model are needed.

    Args:
        model: a directory, a Hub repo id, or an opened checkpoint.
        device: the device of the model.
        dtype: the dtype of weights and image embeddings, or its name; ``None`` for float32.
        device_map: distributes a vision encoder that does not fit on one device: ``"auto"``,
            ``"balanced"``, ``"sequential"``, or a mapping from module names to devices.
        max_memory: the maximum memory of the encoder on each device, as a mapping from the index
            of a CUDA device or ``"cpu"`` to bytes or a size such as ``"4GiB"``.
        plugin: the distribution to use if several plugins serve the checkpoint.
        revision: a branch, tag or commit of a Hub repository.

    Raises:
        OptionError: the encoder cannot be distributed as requested, or the plugin does not support
            that.
    """
    stages = ModelStages(model, plugin=plugin, revision=revision)
    return stages.vision_model(device, dtype, device_map=device_map, max_memory=max_memory)


def load_chat_template(
    model: str | Path | Checkpoint,
    name: str | None = None,
    *,
    plugin: str | None = None,
    revision: str | None = None,
) -> ChatTemplate:
    """Load only the chat template: no weights are needed.

    Args:
        model: a directory, a Hub repo id, or an opened checkpoint.
        name: the name of a template of the plugin; ``None`` for the checkpoint's own.
        plugin: the distribution to use if several plugins serve the checkpoint.
        revision: a branch, tag or commit of a Hub repository.

    Raises:
        OptionError: the plugin has no template with this name, or no named templates.
    """
    return ModelStages(model, plugin=plugin, revision=revision).chat_template(name)


def load_language_model(
    model: str | Path | Checkpoint, *, plugin: str | None = None, revision: str | None = None
) -> LanguageModel:
    """Describe only the language model; its methods read the weights.

    Args:
        model: a directory, a Hub repo id, or an opened checkpoint.
        plugin: the distribution to use if several plugins serve the checkpoint.
        revision: a branch, tag or commit of a Hub repository.
    """
    return ModelStages(model, plugin=plugin, revision=revision).language_model()
