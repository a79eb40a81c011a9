"""The weight file in which each tensor of a checkpoint is stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlcore.checkpoint.files import CheckpointFiles
from vlcore.checkpoint.weights import open_weights
from vlcore.errors import ConfigError, TensorError

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of a checkpoint's only weight file, the preferred one first. Sharded weights have an
index, which is named after it with ``.index.json`` appended."""


def find_weight_files(
    directory: Path,
    name: str,
    fetch: Callable[[Sequence[str]], object] | None = None,
) -> dict[str, Path]:
    """Find the weight file of each tensor, by the tensor's name.

    Args:
        directory: the checkpoint's directory.
        name: the name of the checkpoint in messages.
        fetch: downloads files that are not in the directory yet, by name.

    Raises:
        ConfigError: an index is damaged.
        TensorError: there are no weights, or their file is damaged.
    """
    files = CheckpointFiles(directory)
    indexes = {filename: _read_index(files, directory, filename) for filename in WEIGHT_FILES}
    for filename in WEIGHT_FILES:
        path, index = directory / filename, indexes[filename]
        if index is None and not path.exists() and fetch is not None:
            fetch([filename])
        if path.exists():
            return _single_file(path, index)
        if index is not None and not _is_left_over(index, directory, fetch):
            return index
    for index in filter(None, indexes.values()):  # names the shards that are missing
        return index
    adapter = files.read_json("adapter_config.json")
    raise TensorError(
        f"{name} holds no weights: expected model.safetensors, pytorch_model.bin or the "
        f"index of one (*.index.json){adapter_hint(adapter)}"
    )


def adapter_hint(adapter: Mapping[str, Any] | None) -> str:
    """Return what to do with a LoRA adapter, given its configuration; or an empty text."""
    if adapter is None:
        return ""
    base = adapter.get("base_model_name_or_path") or "an unknown model"
    return (
        f". It is a LoRA adapter of {base}: merge the two (merge_and_unload of the package peft), "
        "and pass the merged checkpoint"
    )


def _read_index(files: CheckpointFiles, directory: Path, filename: str) -> dict[str, Path] | None:
    try:
        index = files.read_json(f"{filename}.index.json")
        if index is not None:
            return _indexed_files(index, directory / f"{filename}.index.json")
    except ConfigError as error:
        if not (directory / filename).exists():
            raise
        logger.warning("%s: it is ignored, because %s is there", error, filename)
    return None


def _single_file(path: Path, index: Mapping[str, Path] | None) -> dict[str, Path]:
    """List the tensors of a checkpoint's only weight file, next to which there may be an index."""
    with open_weights(path) as reader:
        tensors = dict.fromkeys(reader.names, path)
    if index is not None and (difference := sorted(index.keys() ^ tensors.keys())):
        raise TensorError(
            f"{path} and {path.name}.index.json list different tensors, such as {difference[0]}: "
            "remove the one that does not belong to the checkpoint"
        )
    return tensors


def _is_left_over(
    index: Mapping[str, Path], directory: Path, fetch: Callable[[Sequence[str]], object] | None
) -> bool:
    """Return whether an index has lost all of its files, and another weight file is there."""
    has_other = any((directory / filename).exists() for filename in WEIGHT_FILES)
    return fetch is None and has_other and not any(path.exists() for path in index.values())


def _indexed_files(index: Mapping[str, Any], path: Path) -> dict[str, Path]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise ConfigError(f"{path} has no weight_map object that gives the file of each tensor")
    return {name: path.parent / Path(file).name for name, file in weight_map.items()}
