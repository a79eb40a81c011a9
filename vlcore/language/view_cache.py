"""A cache of text views on disk, keyed by everything that determines their content.

It is the directory ``views`` in ``$VLCORE_CACHE``, or else in the user's cache directory.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock, Timeout

from vlcore.errors import OptionError, ViewError
from vlcore.language.text_view.manifest import ViewManifest

if TYPE_CHECKING:
    from vlcore.language.model import LanguageModel

_PARTIAL = ".partial"
_KEY_LENGTH = 16


@dataclass(frozen=True)
class CachedView:
    """A text view in the cache."""

    name: str
    model: str
    path: Path
    num_bytes: int
    """The size of its own files; the weight files to which it links are stored elsewhere."""
    made: str
    """When it was completed, in ISO 8601; empty for an incomplete view."""


class ViewCache:
    """The text views of this user. Each is written once and kept until it is cleared.

    Args:
        root: the directory of the views; ``None`` for ``views`` in ``$VLCORE_CACHE`` or in the
            user's cache directory.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else _cache_directory() / "views"

    def get(self, language_model: LanguageModel, *, progress: bool = False) -> Path:
        """Return the view of a language model, which is written first if it is not cached.

        An interrupted write is resumed. If two processes request the same view at once, one writes
        it and the other waits.

        Raises:
            TensorError: the checkpoint lacks tensors of its architecture.
            ViewError: the view is damaged or cannot be written, or there is too little disk space.
        """
        from vlcore.language.text_view.plan import ViewPlan
        from vlcore.language.text_view.writer import write_view

        key = ViewPlan(language_model).key[:_KEY_LENGTH]
        last_name = Path(language_model.checkpoint.origin).name
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', last_name).strip('.-') or 'view'}-{key}"
        remedy = f"vlcore cache --clear {name}"
        return write_view(language_model, self.root / name, progress=progress, remedy=remedy)

    def views(self, name: str | None = None) -> list[CachedView]:
        """List the views, or only those with the given name or of the given model.

        Raises:
            OptionError: there is no view with that name or of that model.
        """
        paths = sorted(self.root.iterdir()) if self.root.is_dir() else []
        views = [_read_view(path) for path in paths if path.is_dir()]
        keys = {name, str(Path(name).resolve())} if name else set()
        selected = [view for view in views if name is None or keys & {view.name, view.model}]
        if name is not None and not selected:
            known = ", ".join(view.name for view in views) or "none"
            raise OptionError(
                f"{self.root} holds no view with the name or model {name!r}. Its views: {known}"
            )
        return selected

    def clear(self, name: str | None = None) -> list[CachedView]:
        """Remove all views, complete or not, or only those with the given name or model.

        Returns:
            The removed views.

        Raises:
            OptionError: there is no view with that name or of that model.
            ViewError: a view is being written, or cannot be removed.
        """
        removed = self.views(name)
        for view in removed:
            lock = FileLock(self.root / f"{view.name}.lock")
            try:
                with lock.acquire(timeout=0):
                    shutil.rmtree(view.path)
                    Path(lock.lock_file).unlink(missing_ok=True)
            except Timeout:
                raise ViewError(f"{view.path} is being written by another process") from None
            except OSError as error:
                raise ViewError(f"{view.path} cannot be removed: {error}") from error
        return removed


def _cache_directory() -> Path:
    configured = os.environ.get("VLCORE_CACHE")
    return Path(configured).expanduser() if configured else platformdirs.user_cache_path("vlcore")


def _read_view(path: Path) -> CachedView:
    try:
        manifest = ViewManifest.read(path)
    except ViewError:
        manifest = None
    num_bytes = sum(file.lstat().st_size for file in path.iterdir() if not file.is_symlink())
    return CachedView(
        name=path.name.removesuffix(_PARTIAL),
        model=manifest.model if manifest else "",
        path=path,
        num_bytes=num_bytes,
        made=manifest.made if manifest else "",
    )
