"""The manifest of a text view: every file of it, so that a change or a gap is noticed."""

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
"""Of views; one of another format is never taken for one of this."""
MANIFEST = "vlcore-view.json"


@dataclass(frozen=True)
class FileRecord:
    """What a file of a view was when it was made."""

    num_bytes: int
    mtime_ns: int
    sha256: str = ""
    """Of a file of the view's own; a link's target is told by size and time alone."""
    link: str = ""
    """Where a link leads."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at a file, and read it unless it is a link."""
        status = path.stat()
        if path.is_symlink():
            return cls(status.st_size, status.st_mtime_ns, link=os.readlink(path))
        return cls(status.st_size, status.st_mtime_ns, sha256=_digest(path))

    def change_in(self, path: Path) -> str:
        """Say what is wrong with the file now, or nothing.

        A file of the right size and time is read only if it is small; weights are trusted then.
        """
        if not path.is_symlink() and not path.exists():
            return "is missing"
        if path.is_symlink() != bool(self.link) or (self.link and os.readlink(path) != self.link):
            return "is not the link that it was" if self.link else "has become a link"
        if not path.exists():
            return f"leads to {self.link}, which is gone"
        status = path.stat()
        if status.st_size != self.num_bytes:
            return f"has {status.st_size} bytes instead of {self.num_bytes}"
        is_same_age = status.st_mtime_ns == self.mtime_ns
        if self.link:
            return "" if is_same_age else f"leads to {self.link}, which has changed since"
        is_trusted = is_same_age and path.suffix == ".safetensors"
        return "" if is_trusted or _digest(path) == self.sha256 else "has another content"


@dataclass
class ViewManifest:
    """What a view was made of, and the files of it that are finished."""

    key: str
    """A digest of all that decides on a view's content."""
    model: str
    note: str = ""
    """What whoever uses the view must know."""
    made: str = ""
    """When it was finished, in ISO 8601; empty of an unfinished view."""
    files: dict[str, FileRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Read the manifest of a view, or ``None`` where the directory is no view.

        Raises:
            ViewError: it is damaged.
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
                f"{path} is no manifest of a text view ({type(error).__name__}: {error}): remove "
                f"{directory}, and the view is made anew"
            ) from error
        return cls(**texts, files=files)

    def write(self, directory: Path) -> None:
        """Write the manifest whole, or leave the one that is there."""
        value: Mapping[str, Any] = {"format": FORMAT, "vlcore": __version__} | asdict(self)
        partial = directory / f"{MANIFEST}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, directory / MANIFEST)

    def check(self, directory: Path, *, remedy: str) -> None:
        """Make sure that a view is what was written.

        Args:
            directory: the view.
            remedy: the command that removes it.

        Raises:
            ViewError: a file is missing, has changed, or does not belong there.
        """
        found = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
        strange = sorted(found - self.files.keys() - {MANIFEST})
        changes = {name: record.change_in(directory / name) for name, record in self.files.items()}
        changes |= dict.fromkeys(strange, "was not there when the view was made")
        for name, change in changes.items():
            if change:
                raise ViewError(
                    f"the text view {directory} of {self.model} is damaged: {name} {change}. "
                    f"Remove the view with `{remedy}`, and it is made anew"
                )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
