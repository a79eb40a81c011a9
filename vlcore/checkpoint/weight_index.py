"""The weight file in which each tensor of a checkpoint is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlcore.checkpoint.files import CheckpointFiles
from vlcore.checkpoint.weights import open_weights
from vlcore.errors import ConfigError, TensorError

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
    for filename in WEIGHT_FILES:
        if (index := files.read_json(f"{filename}.index.json")) is not None:
            return _indexed_files(index, directory / f"{filename}.index.json")
        path = directory / filename
        if not path.exists() and fetch is not None:
            fetch([filename])
        if path.exists():
            with open_weights(path) as reader:
                return dict.fromkeys(reader.names, path)
    raise TensorError(
        f"{name} holds no weights: expected model.safetensors, pytorch_model.bin or the "
        "index of one (*.index.json)"
    )


def _indexed_files(index: Mapping[str, Any], path: Path) -> dict[str, Path]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise ConfigError(f"{path} has no weight_map object that gives the file of each tensor")
    return {name: path.parent / Path(file).name for name, file in weight_map.items()}
