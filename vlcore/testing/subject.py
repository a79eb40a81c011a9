"""The plugin under test, and the stages of one checkpoint, each loaded once."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import importlib_metadata
import torch
from packaging.utils import canonicalize_name

from vlcore._utils.device import as_device, as_dtype
from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.errors import NoPluginError, OptionError
from vlcore.hookspecs import ENTRY_POINT_GROUP, GENERIC_GROUP, SERVES_GROUP
from vlcore.language.model import LanguageModel
from vlcore.plugins.registry import Plugin, PluginInfo, find_plugin, installed_plugins
from vlcore.plugins.stages import ModelStages
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.tokenization import PromptTokenizer
from vlcore.testing.isolation import IsolatedImport, IsolatedRun, import_isolated, run_isolated
from vlcore.testing.known_models import KnownModel, known_models_of, read_known_models
from vlcore.testing.reference import Reference
from vlcore.testing.report import NotRunError
from vlcore.testing.samples import encode, plain_images
from vlcore.vision.model import ImageRows, VisionModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPORTED_BY = {
    "imports": "light-import",
    "plugin": "hooks",
    "vision_model": "vision-loads",
    "plain_rows": "plain-pictures",
    "template": "template-loads",
    "language_model": "language-loads",
    "tokenizer": "tokenizer-loads",
    "prompt_tokenizer": "tokenizer-loads",
    "text_model": "text-tensors",
    "text_view": "view-tensors",
}
"""The check that reports why a stage cannot be loaded; other checks that need it are not run."""


class Subject:
    """A plugin under test, and its stages of one checkpoint.

    Args:
        plugin: the distribution name; without one, the plugin that serves the checkpoint.
        model: a directory, a Hub repo id or an opened checkpoint; ``None`` for the package only.
        reference: a file of :func:`~vlcore.testing.record_reference`.
        serves: names of known models that the plugin serves, beyond those that its package states.
        tolerance: the largest difference between embeddings of a batch and of single images that
            passes, as a share of the largest value; ``None`` depends on the dtype.
        device: the device of the models.
        dtype: dtype of weights and embeddings; ``None`` is float32.

    Raises:
        NoPluginError: no such distribution is installed, or none serves the checkpoint.
        CheckpointError: the checkpoint cannot be read.
        OptionError: neither a plugin nor a model is given, or an option is out of range.
    """

    def __init__(
        self,
        plugin: str | None = None,
        model: str | Path | Checkpoint | None = None,
        *,
        reference: str | Path | None = None,
        serves: Sequence[str] = (),
        tolerance: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str | None = None,
    ) -> None:
        if model is None and plugin is None:
            raise OptionError("nothing to check: name a plugin, a checkpoint or both")
        if isinstance(model, str | Path):
            model = Checkpoint.open(model)
        self._checkpoint = model
        if plugin is None:
            found = find_plugin(self.checkpoint.config, files=self.checkpoint.files)
            plugin = found.info.distribution
        self.distribution = _find_distribution(plugin)
        self._serves = tuple(serves)
        self.reference = None if reference is None else Reference.read(reference)
        self.device = as_device(device)
        self.dtype = as_dtype(dtype) or torch.float32
        if tolerance is None:
            tolerance = 1e-4 if self.dtype.itemsize >= 4 else 5e-2
        self.tolerance = tolerance
        self._loaded: dict[str, Any] = {}
        self._directories: list[tempfile.TemporaryDirectory[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the stages, and remove temporary files."""
        self._loaded.clear()
        while self._directories:
            self._directories.pop().cleanup()

    # -- the package

    @property
    def name(self) -> str:
        """The distribution's name."""
        return str(self.distribution.metadata["Name"])

    @property
    def version(self) -> str:
        """The distribution's version."""
        return str(self.distribution.version)

    @cached_property
    def info(self) -> PluginInfo:
        """The plugin's metadata."""
        own = canonicalize_name(self.name)
        for info in installed_plugins():
            if canonicalize_name(info.distribution) == own:
                return info
        raise NotRunError("the plugin registers no architectures: see entry-point")

    @property
    def other_models(self) -> tuple[KnownModel, ...]:
        """The known models that the plugin does not serve.

        What the plugin serves is given as an option, stated in the entry points of the package, or
        follows from the architectures that it registers. A generic plugin may match every model of
        its architectures, because it is used only where no other plugin serves the model.

        Raises:
            OptionError: the option names a model that the kit does not know.
        """
        entry_points = self.distribution.entry_points
        known_names = {known_model.name for known_model in read_known_models()}
        # A package may state a model that only a later kit knows.
        stated = known_names.intersection(entry_points.select(group=SERVES_GROUP).names)
        architectures = entry_points.select(group=ENTRY_POINT_GROUP).names
        generic = entry_points.select(group=GENERIC_GROUP).names
        others = known_models_of(self.name, (*self._serves, *stated), architectures=architectures)
        return tuple(model for model in others if not generic.intersection(model.architectures))

    @property
    def module_names(self) -> list[str]:
        """The plugin modules."""
        return sorted(set(self.info.modules.values()))

    @property
    def module_name(self) -> str:
        """The module that serves the checkpoint, or else the first one."""
        names = self.checkpoint.config.get("architectures") or () if self.has_checkpoint else ()
        modules = self.info.modules
        serving = [modules[name] for name in names if name in modules]
        return (serving or self.module_names)[0]

    # -- the checkpoint and its stages

    @property
    def has_checkpoint(self) -> bool:
        """Whether a checkpoint was given."""
        return self._checkpoint is not None

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint.

        Raises:
            OptionError: none was given.
        """
        if self._checkpoint is None:
            raise OptionError("this check needs a checkpoint, and none was given")
        return self._checkpoint

    def load(self, stage: str) -> Any:
        """Load a stage once. If that fails, every call raises the same error.

        Args:
            stage: one of :data:`REPORTED_BY`.
        """
        if stage not in self._loaded:
            try:
                self._loaded[stage] = getattr(self, f"_load_{stage}")()
            except (Exception, SystemExit) as error:
                self._loaded[stage] = error
        loaded = self._loaded[stage]
        if isinstance(loaded, BaseException):
            raise loaded
        return loaded

    def need(self, *stages: str) -> None:
        """Load stages that a check needs but does not use directly.

        Raises:
            NotRunError: a stage cannot be loaded.
        """
        for stage in stages:
            self._need(stage)

    def _need(self, stage: str) -> Any:
        """Load a stage whose failure another check reports.

        Raises:
            NotRunError: the stage cannot be loaded.
        """
        try:
            return self.load(stage)
        except NotRunError:
            raise
        except (Exception, SystemExit) as error:
            name = stage.replace("_", " ")
            raise NotRunError(f"the {name} cannot be loaded: see {REPORTED_BY[stage]}") from error

    @property
    def plugin(self) -> Plugin:
        """The imported plugin."""
        return cast("Plugin", self._need("plugin"))

    @property
    def imports(self) -> list[IsolatedImport]:
        """The result of importing each module in a separate process."""
        return cast("list[IsolatedImport]", self._need("imports"))

    @property
    def isolated_run(self) -> IsolatedRun:
        """The side effects of the plugin, used in a separate process."""
        return cast("IsolatedRun", self.load("isolated_run"))

    @property
    def vision_model(self) -> VisionModel:
        """The vision model."""
        return cast("VisionModel", self._need("vision_model"))

    @property
    def plain_rows(self) -> list[ImageRows]:
        """The embeddings of the plain images, each encoded alone."""
        return cast("list[ImageRows]", self._need("plain_rows"))

    @property
    def template(self) -> ChatTemplate:
        """The chat template."""
        return cast("ChatTemplate", self._need("template"))

    @property
    def language_model(self) -> LanguageModel:
        """The language model without weights, its configuration accepted by transformers."""
        return cast("LanguageModel", self._need("language_model"))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The language model's tokenizer."""
        return cast("PreTrainedTokenizerBase", self._need("tokenizer"))

    @property
    def prompt_tokenizer(self) -> PromptTokenizer:
        """The tokenizer of prompts."""
        return cast("PromptTokenizer", self._need("prompt_tokenizer"))

    @property
    def text_model(self) -> PreTrainedModel:
        """The language model as a transformers model."""
        return cast("PreTrainedModel", self._need("text_model"))

    @property
    def text_view(self) -> Path:
        """The text view, in a directory that :meth:`close` removes."""
        return cast("Path", self._need("text_view"))

    def stages(self) -> ModelStages:
        """The checkpoint's stages through this plugin, whether or not it matches."""
        return ModelStages(self.checkpoint, plugin=self.plugin)

    def load_vision_model(self, dtype: torch.dtype) -> VisionModel:
        """Load another vision model."""
        return self.stages().vision_model(self.device, dtype)

    def make_directory(self) -> Path:
        """Create a directory that :meth:`close` removes."""
        directory = tempfile.TemporaryDirectory(prefix="vlcore-check-", ignore_cleanup_errors=True)
        self._directories.append(directory)
        return Path(directory.name)

    def _load_plugin(self) -> Plugin:
        return Plugin(self.info, self.module_name)

    def _load_imports(self) -> list[IsolatedImport]:
        return [import_isolated(name) for name in self.module_names]

    def _load_isolated_run(self) -> IsolatedRun:
        if self.checkpoint.is_remote:  # download the files of the Hub first
            encode(self.vision_model, plain_images()[:1])
        directory = self.make_directory()
        return run_isolated(self.name, self.module_name, self.checkpoint.directory, directory)

    def _load_vision_model(self) -> VisionModel:
        return self.load_vision_model(self.dtype)

    def _load_plain_rows(self) -> list[ImageRows]:
        return [encode(self.vision_model, [image])[0] for image in plain_images()]

    def _load_template(self) -> ChatTemplate:
        return self.stages().chat_template()

    def _load_language_model(self) -> LanguageModel:
        language_model = self.stages().language_model()
        language_model.transformers_config  # noqa: B018  # raises for a wrong model_type
        return language_model

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.language_model.tokenizer()

    def _load_prompt_tokenizer(self) -> PromptTokenizer:
        return PromptTokenizer(self.tokenizer)

    def _load_text_model(self) -> PreTrainedModel:
        return self.language_model.to_transformers(self.device, self.dtype)

    def _load_text_view(self) -> Path:
        return self.language_model.write_view(self.make_directory() / "view")


def _find_distribution(name: str) -> importlib_metadata.Distribution:
    try:
        return cast("importlib_metadata.Distribution", importlib_metadata.distribution(name))
    except importlib_metadata.PackageNotFoundError:
        installed = ", ".join(info.distribution for info in installed_plugins()) or "none"
        raise NoPluginError(
            f"no distribution {name!r} is installed; installed plugins: {installed}"
        ) from None
