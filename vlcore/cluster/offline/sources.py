"""``find_sources``: image files of directories, glob patterns and object stores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from vlcore.errors import ImageError, ImageLimitError, OptionError
from vlcore.media.image_files import find_images, image_suffixes
from vlcore.media.policy import DEFAULT_LIMITS
from vlcore.media.source import read_image

_URI = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_NUM_ATTEMPTS = 3
"""Number of times that a file of an object store is read before it counts as unreadable."""

LOCAL = -1
"""The filesystem of paths and of http(s), data and file URLs."""


@dataclass(frozen=True)
class SourceFile:
    """An image file, and the filesystem that it is read from."""

    name: str
    """The name of its embeddings: a path or URI as in the arguments, without credentials."""
    path: str
    """The path on the filesystem. It does not depend on the working directory."""
    filesystem: int = LOCAL
    """The index of the filesystem, or ``LOCAL``."""


@dataclass
class Sources:
    """Image files, and the filesystems of pyarrow that some of them are read from."""

    files: list[SourceFile] = field(default_factory=list)
    filesystems: list[Any] = field(default_factory=list)


def is_uri(text: str) -> bool:
    """Return whether a text is a URI that names a filesystem, such as ``s3://bucket/images``."""
    scheme = _URI.match(text)
    return scheme is not None and scheme[1].lower() not in ("http", "https")


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Open the filesystem of a URI: one of pyarrow's own, or else one of fsspec's.

    Returns:
        A ``pyarrow.fs.FileSystem`` and the path on it.

    Raises:
        OptionError: the scheme is unknown, its package is not installed, or the URI is invalid.
    """
    import fsspec
    import pyarrow
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        filesystem, path = FileSystem.from_uri(quote(uri, safe="%/:?&=@+,;~!$'()*-._"))
    except pyarrow.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise OptionError(f"{without_credentials(uri)} is not a valid URI: {error}") from error
    except OSError as error:
        raise OptionError(f"{without_credentials(uri)} cannot be opened: {error}") from error
    else:
        return filesystem, path
    try:
        backend, path = fsspec.core.url_to_fs(uri)
    except Exception as error:  # each of fsspec's filesystems has errors of its own
        raise OptionError(f"{without_credentials(uri)} cannot be opened: {error}") from error
    return PyFileSystem(FSSpecHandler(backend)), path


def find_sources(arguments: Sequence[str]) -> Sources:
    """List the images that arguments name, each once.

    Args:
        arguments: those of :func:`vlcore.media.image_files.find_images`, and URIs of files,
            directories and glob patterns, such as ``s3://bucket/images/*.jpg``.

    Raises:
        OptionError: a filesystem cannot be opened or listed, or there are no images.
    """
    sources = Sources()
    found: dict[str, SourceFile] = {}
    for argument in arguments:
        if is_uri(argument):
            filesystem, files = _find_by_uri(argument, len(sources.filesystems))
            sources.filesystems.append(filesystem)
        else:
            files = _find_locally(argument)
        found |= {file.name: file for file in files if file.name not in found}
    if not found:
        names = ", ".join(map(without_credentials, arguments))
        raise OptionError(f"no images found in {names}")
    sources.files.extend(found.values())
    return sources


def read_source(path: str, filesystem: Any | None) -> bytes:
    """Read an image file, within the default limits of an image.

    Raises:
        ImageError: the file is missing or cannot be read.
        ImageLimitError: the file is too large.
    """
    if filesystem is None:
        return read_image(path)
    for attempt in range(_NUM_ATTEMPTS):
        try:
            with filesystem.open_input_stream(path) as file:
                data: bytes = file.read(DEFAULT_LIMITS.max_bytes + 1)
            break
        except FileNotFoundError as error:
            raise ImageError(f"there is no file {path!r} in {filesystem.type_name}") from error
        except Exception as error:  # each of fsspec's filesystems has errors of its own
            if attempt == _NUM_ATTEMPTS - 1:
                raise ImageError(f"{path!r} cannot be read: {error}") from error
    if len(data) > DEFAULT_LIMITS.max_bytes:
        raise ImageLimitError(
            f"{path!r} is larger than max_bytes={DEFAULT_LIMITS.max_bytes} of vlcore.ImageLimits"
        )
    return data


def without_credentials(uri: str) -> str:
    """Return a URI without its query and password, which may contain secrets."""
    if not is_uri(uri):
        return uri
    return re.sub(r"://[^/@]*:[^/@]*@", "://", uri.partition("?")[0])


def _find_locally(argument: str) -> list[SourceFile]:
    try:
        names = find_images([argument])
    except OptionError:  # an empty directory, among arguments that may have images
        return []
    return [SourceFile(name, _absolute(name)) for name in names]


def _absolute(name: str) -> str:
    """Return a path that is valid in the working directories of other processes."""
    if _URI.match(name) or name.lower().startswith(("data:", "file:")):
        return name
    try:
        return str(Path(name).expanduser().absolute())
    except RuntimeError:  # an unknown user: reading the file reports it
        return name


def _find_by_uri(uri: str, index: int) -> tuple[Any, list[SourceFile]]:
    """List the files of a URI on its filesystem, which gets an index."""
    location, question_mark, query = uri.partition("?")
    directory, pattern = split_pattern(location)
    filesystem, root = open_filesystem(f"{directory}{question_mark}{query}")
    shown = without_credentials(directory)
    try:
        paths = _list_paths(filesystem, root, pattern)
    except Exception as error:  # as above
        raise OptionError(f"{shown} cannot be listed: {error}") from error
    prefix = shown.rstrip("/")

    def name_of(path: str) -> str:
        relative = path[len(root) :].lstrip("/")
        return f"{prefix}/{relative}" if relative else shown

    return filesystem, [SourceFile(name_of(path), path, index) for path in paths]


def split_pattern(location: str) -> tuple[str, str]:
    """Split a URI into the directory before its first ``*`` or ``[``, and the pattern after it."""
    scheme, _, rest = location.partition("://")
    parts = rest.split("/")
    first = next((n for n, part in enumerate(parts) if "*" in part or "[" in part), len(parts))
    return f"{scheme}://{'/'.join(parts[:first])}", "/".join(parts[first:])


def _list_paths(filesystem: Any, root: str, pattern: str) -> list[str]:
    from fsspec.utils import glob_translate
    from pyarrow.fs import FileSelector, FileType

    if not pattern and filesystem.get_file_info(root).type != FileType.Directory:
        return [root]  # a file, or one that is absent, which reading it reports
    infos = filesystem.get_file_info(FileSelector(root, recursive=True, allow_not_found=True))
    files = sorted(info.path for info in infos if info.type == FileType.File)
    if pattern:
        matches = re.compile(glob_translate(pattern)).match
        return [path for path in files if matches(path[len(root) :].lstrip("/"))]
    suffixes = image_suffixes()
    return [path for path in files if PurePosixPath(path).suffix.lower() in suffixes]
