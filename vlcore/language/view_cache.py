"""Text views that are kept, by all that decides on their content.

They lie in ``views`` below ``$VLCORE_CACHE``, or else below the user's cache directory.
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
    """A view in the cache."""

    name: str
    model: str
    path: Path
    num_bytes: int
    """What it takes; the weight files that it links to lie elsewhere."""
    made: str
    """When it was finished, in ISO 8601; empty of one that was not."""


class ViewCache:
    """The text views of this user, each written once and kept until somebody clears it.

    Args:
        root: where they lie; ``None`` for ``views`` below ``$VLCORE_CACHE`` or the user's cache
            directory.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else _cache_directory() / "views"

    def get(self, language_model: LanguageModel, *, progress: bool = False) -> Path:
        """Give the view of a text part, which is written first if it is not there.

        A write that was cut short is gone on with. Of two processes that ask for one view at
        once, one writes it and the other waits.

        Raises:
            TensorError: the checkpoint lacks tensors that its architecture asks for.
            ViewError: the view is damaged or cannot be written, or the disk is too small.
        """
        from vlcore.language.text_view.plan import ViewPlan
        from vlcore.language.text_view.writer import write_view

        key = ViewPlan(language_model).key[:_KEY_LENGTH]
        last_name = Path(language_model.checkpoint.origin).name
        name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', last_name).strip('.-') or 'view'}-{key}"
        remedy = f"vlcore cache --clear {name}"
        return write_view(language_model, self.root / name, progress=progress, remedy=remedy)

    def views(self, name: str | None = None) -> list[CachedView]:
        """List the views, those of a name or model alone if one is given.

        Raises:
            OptionError: there is none of that name or model.
        """
        places = sorted(self.root.iterdir()) if self.root.is_dir() else []
        views = [_look_at(place) for place in places if place.is_dir()]
        named = {name, str(Path(name).resolve())} if name else set()
        found = [view for view in views if name is None or named & {view.name, view.model}]
        if name is not None and not found:
            known = ", ".join(view.name for view in views) or "none"
            raise OptionError(f"{self.root} holds no view named {name!r}, nor one of it: {known}")
        return found

    def clear(self, name: str | None = None) -> list[CachedView]:
        """Remove every view, finished or not, or those of a name or model alone.

        Raises:
            OptionError: there is none of that name or model.
            ViewError: one is being written, or cannot be removed.
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
    stated = os.environ.get("VLCORE_CACHE")
    return Path(stated).expanduser() if stated else platformdirs.user_cache_path("vlcore")


def _look_at(place: Path) -> CachedView:
    try:
        manifest = ViewManifest.read(place)
    except ViewError:
        manifest = None
    num_bytes = sum(path.lstat().st_size for path in place.iterdir() if not path.is_symlink())
    return CachedView(
        name=place.name.removesuffix(_PARTIAL),
        model=manifest.model if manifest else "",
        path=place,
        num_bytes=num_bytes,
        made=manifest.made if manifest else "",
    )
