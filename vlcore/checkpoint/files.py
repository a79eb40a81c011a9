"""The metadata files of a checkpoint: read-only, without weights and without network access."""

from __future__ import annotations

import json
from pathlib import Path, PureWindowsPath
from typing import Any

from vlcore.errors import ConfigError

METADATA_PATTERNS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
"""Names of the metadata files, which are downloaded when a Hub repository is opened."""


class CheckpointFiles:
    """The metadata files of a checkpoint: configurations, tokenizers and chat templates.

    The files of every folder of the checkpoint are available, also those of a Hub repository that
    has just been opened. Weights are neither read nor downloaded.

    A path is relative to the checkpoint. Forward and backward slashes separate its parts, and a
    leading ``./`` or a trailing slash is ignored. An absolute path, or one that leads out of the
    checkpoint with ``..``, refers to no file.

    Args:
        directory: the checkpoint's directory; ``None`` for a configuration without a checkpoint,
            which has no files.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def __repr__(self) -> str:
        return f"CheckpointFiles({str(self._directory)!r})"

    def __contains__(self, path: str) -> bool:
        """Whether the checkpoint has this metadata file."""
        return self._find(path) is not None

    def read_json(self, path: str) -> dict[str, Any] | None:
        """Read a JSON object; returns ``None`` if the checkpoint has no such file.

        Args:
            path: such as ``"preprocessor_config.json"`` or ``"vision/config.json"``.

        Raises:
            ConfigError: the file is not a JSON object.
        """
        file = self._find(path)
        if file is None:
            return None
        try:
            value = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{file} is not readable JSON: {error}") from error
        if not isinstance(value, dict):
            raise ConfigError(f"{file} must hold a JSON object; it holds a {type(value).__name__}")
        return value

    def _find(self, path: str) -> Path | None:
        if self._directory is None:
            return None
        file = path_inside(self._directory, path)
        if file is None or not any(file.match(pattern) for pattern in METADATA_PATTERNS):
            return None
        try:
            return file if file.is_file() else None
        except (OSError, ValueError):  # not a valid path
            return None


def path_inside(directory: Path, path: str) -> Path | None:
    """Join a relative path to a directory; returns ``None`` if it leads out of the directory.

    Links are followed, because the Hub's cache stores files as links to another folder.
    """
    given = PureWindowsPath(path)  # splits at both kinds of slash
    parts: list[str] = []
    for part in given.parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            return None
    return None if given.anchor else directory.joinpath(*parts)
