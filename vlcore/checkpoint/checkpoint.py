"""A checkpoint: its configuration as plain JSON, its tokenizer, its tensors by name.

A checkpoint is a directory or a repository of the Hugging Face Hub. This module does not depend on
the kind of model: ``config.json`` is read as plain JSON. Only the requested tensors are read from
disk, directly to their dtype and device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlcore.checkpoint import module_loader
from vlcore.checkpoint.files import METADATA_PATTERNS, CheckpointFiles, path_inside
from vlcore.checkpoint.fingerprint import compute_fingerprint
from vlcore.checkpoint.location import find_checkpoint
from vlcore.checkpoint.tensor_source import TensorSource
from vlcore.checkpoint.tokenizer_files import (
    read_chat_template,
    read_response_template,
    read_special_tokens,
)
from vlcore.checkpoint.weight_files import describe_tensors, read_tensors
from vlcore.checkpoint.weight_index import adapter_hint, find_weight_files
from vlcore.checkpoint.weights import TensorInfo, shorten
from vlcore.errors import CheckpointNotFoundError, ConfigError, TensorError
from vlcore.vocabulary import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Checkpoint:
    """A model directory, or a Hub repository whose files are downloaded when they are needed.

    Args:
        directory: the directory of the files.
        name: the name of the checkpoint in messages; ``None`` for the directory.
        fetch: downloads files by name before they are read; ``None`` if all files are present.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str | None = None,
        fetch: Callable[[Sequence[str]], object] | None = None,
    ) -> None:
        self.directory = directory
        self.name = name or str(directory)
        self._fetch = fetch

    @classmethod
    def open(cls, model: str | Path, *, revision: str | None = None) -> Checkpoint:
        """Open a directory, or a Hub repository by its id, such as ``"organisation/name"``.

        Only the metadata files of a Hub repository are downloaded now. Code never is.

        Args:
            model: a directory or a Hub repo id; a directory takes precedence.
            revision: a branch, tag or commit of the Hub repository.

        Raises:
            CheckpointError: the path of the directory is not UTF-8.
            CheckpointNotFoundError: ``model`` is neither a directory nor a reachable repository.
        """
        found = find_checkpoint(model, revision)
        if isinstance(found, Path):
            return cls(found)
        directory = found.download(METADATA_PATTERNS)
        return cls(directory, name=found.repo_id, fetch=found.download)

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r})"

    @property
    def is_remote(self) -> bool:
        """Whether files are downloaded when they are needed."""
        return self._fetch is not None

    @property
    def origin(self) -> str:
        """The Hub repo id, or the absolute path of a directory."""
        return str(self.directory.resolve()) if self._fetch is None else self.name

    # -- JSON and other small files

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """``config.json`` as plain JSON.

        Raises:
            ConfigError: the file is absent, or is not a JSON object.
        """
        config = self.read_json("config.json")
        if config is None:
            adapter = self.read_json("adapter_config.json")
            if adapter is not None:
                raise ConfigError(f"{self.name} has no config.json{adapter_hint(adapter)}")
            raise ConfigError(
                f"{self.name} has no config.json: is it a checkpoint in the Hugging Face layout? "
                f"It holds {shorten(sorted(path.name for path in self.directory.iterdir()))}"
            )
        return config

    @cached_property
    def files(self) -> CheckpointFiles:
        """The metadata files, such as ``config.json``, in every folder of the checkpoint."""
        return CheckpointFiles(self.directory)

    def read_json(self, filename: str) -> dict[str, Any] | None:
        """Read a JSON object of a metadata file; returns ``None`` if there is no such file.

        Raises:
            ConfigError: the file is not a JSON object.
        """
        return self.files.read_json(filename)

    @property
    def metadata_files(self) -> tuple[Path, ...]:
        """The paths of the metadata files, such as the tokenizer's, sorted."""
        found = {path for pattern in METADATA_PATTERNS for path in self.directory.glob(pattern)}
        return tuple(sorted(path for path in found if path.is_file()))

    @property
    def chat_template(self) -> str | None:
        """The source of the checkpoint's Jinja chat template; ``None`` without one."""
        return read_chat_template(self.directory, self.files)

    @property
    def response_template(self) -> dict[str, Any] | None:
        """How answers call tools, if ``tokenizer_config.json`` describes it for transformers."""
        return read_response_template(self.files)

    @property
    def special_tokens(self) -> dict[str, str]:
        """The text of each special token of the tokenizer, by role such as ``eos_token``."""
        return read_special_tokens(self.files)

    def related(self, reference: str) -> Checkpoint:
        """Open a checkpoint that this one refers to.

        Args:
            reference: a folder of this checkpoint, with forward or backward slashes; or else a
                Hub repo id, or the absolute path of a directory.

        Raises:
            CheckpointNotFoundError: the reference is none of these, or leads out of this
                checkpoint with ``..``.
        """
        try:
            inside = path_inside(self.directory, reference)
            if inside is not None and inside.is_dir():
                return self._inner(inside)
            if inside is None and not PureWindowsPath(reference).anchor:
                raise CheckpointNotFoundError("it leads out of the checkpoint with '..'")
            return Checkpoint.open(reference)
        except (OSError, ValueError, CheckpointNotFoundError) as error:
            raise CheckpointNotFoundError(
                f"{self.name} refers to {reference[:80]!r}, which is not a directory inside it: "
                f"{error}"
            ) from error

    def _inner(self, directory: Path) -> Checkpoint:
        """Open a directory; the files of a folder in a Hub repository are downloaded to it."""
        fetch = self._fetch
        if fetch is None or not directory.is_relative_to(self.directory):
            return Checkpoint(directory)
        folder = directory.relative_to(self.directory)
        return Checkpoint(
            directory,
            name=f"{self.name}/{folder.as_posix()}",
            fetch=lambda names: fetch([(folder / name).as_posix() for name in names]),
        )

    def tokenizer(self, config: PretrainedConfig | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer, without remote code.

        Args:
            config: the configuration of the language model. It determines the tokenizer's class if
                the tokenizer's own files do not. Without it, ``config.json`` does, whose
                ``model_type`` can mean another model to transformers.

        Raises:
            CheckpointError: there is no tokenizer, or it cannot be read.
        """
        return load_tokenizer(self.directory, config)

    @cached_property
    def fingerprint(self) -> str:
        """A digest that changes with the checkpoint.

        It covers the path of the checkpoint, the sizes and modification times of ``config.json``
        and the weight files, and the headers of safetensors files. Weights are never hashed.
        """
        return self.fingerprint_of(self._weight_files.values())

    def fingerprint_of(self, weight_files: Iterable[Path]) -> str:
        """Compute the fingerprint for some of the weight files only."""
        return compute_fingerprint(self.directory, weight_files)

    # -- tensors

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The names of all tensors, sorted."""
        return tuple(sorted(self._weight_files))

    def has_tensors(self, prefix: str) -> bool:
        """Whether any tensor's name begins with ``prefix``."""
        return any(name.startswith(prefix) for name in self._weight_files)

    def file_of(self, name: str) -> Path:
        """Return the weight file that holds a tensor.

        Raises:
            TensorError: the checkpoint has no such tensor.
        """
        try:
            return self._weight_files[name]
        except KeyError:
            raise TensorError(
                f"tensor {name!r} is missing from {self.name}, which has "
                f"{len(self._weight_files)} tensors"
            ) from None

    def tensors(
        self,
        names: Iterable[str],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Iterator[tuple[str, Tensor]]:
        """Read tensors one at a time, file by file. Nothing else is read from disk.

        Args:
            names: the names of the tensors.
            device: the device on which the tensors are returned.
            dtype: the dtype to which floating-point tensors are converted; ``None`` keeps the
                stored dtype.
            progress: whether to show a progress bar.

        Raises:
            TensorError: names are missing, or a file is damaged.
        """
        yield from read_tensors(
            self._files_with(names), device=device, dtype=dtype, progress=progress
        )

    def tensor_infos(self, names: Iterable[str]) -> dict[str, TensorInfo]:
        """Return dtypes and shapes, in the order in which :meth:`tensors` reads the tensors.

        Raises:
            TensorError: names are missing, or a file is damaged.
        """
        return describe_tensors(self._files_with(names))

    def _files_with(self, names: Iterable[str]) -> dict[Path, list[str]]:
        """Group tensor names by weight file, and make sure that these files are present."""
        requested = list(dict.fromkeys(names))
        if missing := [name for name in requested if name not in self._weight_files]:
            raise TensorError(f"{self.name} lacks {len(missing)} tensor(s): {shorten(missing)}")
        by_file: dict[Path, list[str]] = {}
        for name in requested:
            by_file.setdefault(self._weight_files[name], []).append(name)
        self.fetch_files(by_file)
        return by_file

    def fetch_files(self, paths: Iterable[Path]) -> None:
        """Make sure that weight files are present; those of a Hub repository are downloaded now.

        Raises:
            CheckpointNotFoundError: the files cannot be downloaded.
        """
        if self._fetch is not None:
            self._fetch([path.name for path in paths])

    def load_module(
        self,
        module: nn.Module,
        sources: Mapping[str, TensorSource],
        *,
        device: torch.device | str | Mapping[str, int | str | torch.device] = "cpu",
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> None:
        """Fill a module with tensors of the checkpoint, and prepare it for inference.

        Afterwards every parameter and buffer is on ``device``, no parameter requires a gradient,
        and the module is in evaluation mode. Buffers that the checkpoint does not hold (those with
        ``persistent=False``, such as position ids and rotary frequencies) keep the values and the
        dtype that the module computed for them.

        Args:
            module: the module to fill, preferably built inside :func:`~vlcore.empty_weights`; its
                parameters are replaced.
            sources: where the tensor of each key of ``module.state_dict()`` is stored. A class of
                transformers that merges or reshapes tensors on loading, such as those of experts,
                takes the keys that its checkpoints have.
            device: the device of all parameters and buffers, or a mapping from the names of
                submodules to their devices.
            dtype: the dtype to which floating-point tensors are converted; ``None`` keeps the
                stored dtype.
            progress: whether to show a progress bar.

        Raises:
            TensorError: keys without a source, sources without a key, missing tensors or wrong
                shapes, each of which is listed; or a buffer without values.
        """
        module_loader.load_module(
            self, module, sources, device=device, dtype=dtype, progress=progress
        )

    def check_module(self, module: nn.Module, sources: Mapping[str, TensorSource]) -> None:
        """Check that a module can be filled, without reading any tensor.

        Args:
            module: the module that would be filled.
            sources: where the tensor of each key of ``module.state_dict()`` is stored.

        Raises:
            TensorError: keys without a source, sources without a key, missing tensors or wrong
                shapes, each of which is listed.
        """
        module_loader.check_module(self, module, sources)

    @cached_property
    def _weight_files(self) -> Mapping[str, Path]:
        """The weight file of each tensor, by the tensor's name."""
        return find_weight_files(self.directory, self.name, self._fetch)
