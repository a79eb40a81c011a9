"""The manifest of a text view: a record of every file, by which changes and gaps are detected."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from vlcore._version import __version__
from vlcore.errors import ViewError

FORMAT = 1
"""The version of the format of views. A view of another format is not used."""
MANIFEST = "vlcore-view.json"


@dataclass(frozen=True)
class FileRecord:
    """The state of a file of a view when the view was written."""

    num_bytes: int
    mtime_ns: int
    sha256: str = ""
    """Empty for a link: its target is identified by its size and modification time."""
    link: str = ""
    """The target of a link; empty for a regular file."""

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Record the state of a file, which is read unless it is a link."""
        status = path.stat()
        if path.is_symlink():
            return cls(status.st_size, status.st_mtime_ns, link=os.readlink(path))
        return cls(status.st_size, status.st_mtime_ns, sha256=_digest(path))

    def change_in(self, path: Path) -> str:
        """Describe how the file has changed; returns an empty string if it has not.

        Weights of the recorded size and time are not read again. Other files are.
        """
        if not path.is_symlink() and not path.exists():
            return "is missing"
        if path.is_symlink() != bool(self.link) or (self.link and os.readlink(path) != self.link):
            return "is not the link that it was" if self.link else "has become a link"
        if not path.exists():
            return f"links to {self.link}, which does not exist"
        status = path.stat()
        if status.st_size != self.num_bytes:
            return f"has {status.st_size} bytes instead of {self.num_bytes}"
        is_same_age = status.st_mtime_ns == self.mtime_ns
        if self.link:
            return "" if is_same_age else f"links to {self.link}, which has changed since"
        is_trusted = is_same_age and path.suffix == ".safetensors"
        return "" if is_trusted or _digest(path) == self.sha256 else "has other content"


@dataclass
class ViewManifest:
    """The origin of a view, and the records of its completed files."""

    key: str
    """A digest of everything that determines the view's content."""
    model: str
    note: str = ""
    """What a user of the view must know, such as why its context is limited."""
    made: str = ""
    """When the view was completed, in ISO 8601; empty for an incomplete view."""
    files: dict[str, FileRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Read the manifest of a view; returns ``None`` if the directory has no manifest.

        Raises:
            ViewError: the manifest is damaged.
        """
        path = directory / MANIFEST
        if not path.is_file():
            return None
        try:
            value: dict[str, Any] = json.loads(path.read_text("utf-8"))
            files = {name: FileRecord(**record) for name, record in value["files"].items()}
            texts = {key: str(value[key]) for key in ("key", "model", "note", "made")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ViewError(
                f"{path} is not a valid manifest of a text view ({type(error).__name__}: {error}): "
                f"remove {directory}; the view is written again when it is needed"
            ) from error
        return cls(**texts, files=files)

    def write(self, directory: Path) -> None:
        """Write the manifest atomically."""
        value: Mapping[str, Any] = {"format": FORMAT, "vlcore": __version__} | asdict(self)
        partial = directory / f"{MANIFEST}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, directory / MANIFEST)

    def check(self, directory: Path, *, remedy: str) -> None:
        """Check that the files of a view are unchanged.

        Args:
            directory: the view.
            remedy: the command that removes it.

        Raises:
            ViewError: a file is missing, has changed, or is not part of the view.
        """
        found = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
        unknown = sorted(found - self.files.keys() - {MANIFEST})
        changes = {name: record.change_in(directory / name) for name, record in self.files.items()}
        changes |= dict.fromkeys(unknown, "is not part of the view")
        for name, change in changes.items():
            if change:
                raise ViewError(
                    f"the text view {directory} of {self.model} is damaged: {name} {change}. "
                    f"Remove the view with `{remedy}`; it is written again when it is needed"
                )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
