"""``find_images``: the images of directories and glob patterns on this machine."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vlcore.errors import OptionError
from vlcore.media.policy import FORMATS


def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of files that directories are searched for."""
    suffixes = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in suffixes if kind in FORMATS)


def find_images(sources: Sequence[str]) -> list[str]:
    """List images by name, each once.

    Args:
        sources: names of files, which need not exist; URLs; directories, which are searched for
            images in alphabetical order; and glob patterns such as ``photos/**/*.jpg``.

    Raises:
        OptionError: the directories contain no image, and nothing else is named.
    """
    suffixes = image_suffixes()
    found: dict[str, None] = {}
    for source in sources:
        for name in _expand(source):
            if Path(name).is_dir():
                files = sorted(path for path in Path(name).rglob("*") if path.is_file())
                found |= {str(path): None for path in files if path.suffix.lower() in suffixes}
            else:
                found[name] = None
    if not found:
        raise OptionError(f"no images found in {', '.join(sources)}")
    return list(found)


def _expand(source: str) -> list[str]:
    """Return the names that match a glob pattern; a name that is none stands for itself."""
    is_url = "://" in source or source.lower().startswith("data:")
    if is_url or not glob.has_magic(source) or Path(source).exists():
        return [source]
    return sorted(glob.glob(source, recursive=True)) or [source]
