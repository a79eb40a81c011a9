"""Loads one stage of a checkpoint through its plugin, and nothing that other stages need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from vlcore._utils.device import as_device, as_dtype
from vlcore._utils.device_map import DeviceMap, MaxMemory
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.errors import PluginContractError, VlcoreError
from vlcore.language.model import LanguageModel
from vlcore.plugins.registry import Plugin, find_plugin
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.vision.model import VisionModel

_T = TypeVar("_T")


class ModelStages:
    """A checkpoint and the plugin that serves it, from which each stage is loaded.

    Args:
        model: a directory, a hub id, or an opened checkpoint.
        plugin: the distribution to use where several would serve the checkpoint, or an imported
            plugin, which is not asked whether it does.
        revision: of a hub repository.

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
        """Load the vision model; ``dtype=None`` is float32.

        On the meta device its weights have shapes and no values, for those who count them.
        """
        is_meta = isinstance(device, torch.device) and device.type == "meta"
        place = torch.device(device) if is_meta else as_device(device)
        wanted = as_dtype(dtype) or torch.float32
        if device_map is None and max_memory is not None:
            device_map = "auto"
        with self._blaming("vl_vision_model"):
            model = self.plugin.vision_model(self.checkpoint, place, wanted, device_map, max_memory)
        vision_model = self._expect(model, VisionModel, "vl_vision_model")
        if not isinstance(getattr(vision_model, "hidden_size", None), int):
            raise PluginContractError(
                f"{type(vision_model).__name__} of plugin {self.plugin.info.distribution} must "
                "set hidden_size, the width of its rows"
            )
        vision_model.fingerprint = vision_model.fingerprint or self.checkpoint.fingerprint
        return vision_model

    def chat_template(self, name: str | None = None) -> ChatTemplate:
        """Load the chat template, or the named one of several.

        Raises:
            OptionError: the plugin has no template of this name, or takes no names at all.
        """
        with self._blaming("vl_chat_template"):
            template = self.plugin.chat_template(self.checkpoint, name)
        return self._expect(template, ChatTemplate, "vl_chat_template")

    def language_model(self) -> LanguageModel:
        """Describe the text part; no weights are read."""
        with self._blaming("vl_language_model"):
            language_model = self.plugin.language_model(self.checkpoint)
        return self._expect(language_model, LanguageModel, "vl_language_model")

    @contextmanager
    def _blaming(self, hook: str) -> Iterator[None]:
        """Say which hook of which plugin raised what no hook should."""
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
    """Load the vision part alone: no tokenizer and no text weights are needed.

    Args:
        model: a directory, a hub id, or an opened checkpoint.
        device: where it goes.
        dtype: of weights and rows, as a torch dtype or its name; ``None`` is float32.
        device_map: spreads a tower that does not fit on one device: ``"auto"``, ``"balanced"``,
            ``"sequential"``, or the device of each part of the tower by name.
        max_memory: what the tower may use of each device: bytes, or a size such as ``"4GiB"``, by
            the number of a CUDA device or ``"cpu"``.
        plugin: the distribution to use where several would serve the checkpoint.
        revision: of a hub repository.

    Raises:
        OptionError: the tower cannot be spread so, or its plugin spreads none.
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
    """Load the chat template alone: no weights are needed.

    Args:
        model: a directory, a hub id, or an opened checkpoint.
        name: one of the plugin's templates; ``None`` for the checkpoint's own.
        plugin: the distribution to use where several would serve the checkpoint.
        revision: of a hub repository.

    Raises:
        OptionError: the plugin has no template of this name, or takes no names at all.
    """
    return ModelStages(model, plugin=plugin, revision=revision).chat_template(name)


def load_language_model(
    model: str | Path | Checkpoint, *, plugin: str | None = None, revision: str | None = None
) -> LanguageModel:
    """Describe the text part alone; weights are read by its methods.

    Args:
        model: a directory, a hub id, or an opened checkpoint.
        plugin: the distribution to use where several would serve the checkpoint.
        revision: of a hub repository.
    """
    return ModelStages(model, plugin=plugin, revision=revision).language_model()
