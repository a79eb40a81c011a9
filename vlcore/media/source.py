"""The bytes of an image or video file from a path, a URL or bytes, within limits."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from PIL import Image

from vlcore.errors import ImageError, VideoError
from vlcore.media.data_url import hint, read_data_url
from vlcore.media.download import download
from vlcore.media.kind import IMAGE, FileLimits, MediaKind
from vlcore.media.policy import (
    DEFAULT_LIMITS,
    TRUSTING,
    ImageAccess,
    ImageLimits,
    open_file,
)

ImageSource = str | Path | bytes | Image.Image
"""A path, an http(s), ``file:`` or ``data:`` URL, the bytes of a file, or a PIL image."""


def read_image(
    source: str | Path | bytes,
    limits: ImageLimits = DEFAULT_LIMITS,
    access: ImageAccess = TRUSTING,
) -> bytes:
    """Read or download the bytes of an image file. This works inside a running event loop too.

    Raises:
        ImageError: the file is missing, not allowed, or cannot be fetched.
        ImageLimitError: the file exceeds a limit.
    """
    return read_file(source, limits, access)


def read_file(
    source: str | Path | bytes, limits: FileLimits, access: ImageAccess = TRUSTING
) -> bytes:
    """Read or download the bytes of a file of the kind that the limits are for.

    Raises:
        ImageError, VideoError: the file is missing, not allowed, or cannot be fetched.
        ImageLimitError, VideoLimitError: the file exceeds a limit.
    """
    name = describe(source, limits.kind)
    if is_web_url(source):
        return _run_in_thread(download(str(source), name, limits, access))
    return _read(source, name, limits, access)


def is_web_url(source: object) -> bool:
    """Return whether a source is an http(s) URL."""
    return isinstance(source, str) and _scheme(source) in ("http", "https")


def is_data_url(source: object) -> bool:
    """Return whether a source is a ``data:`` URL."""
    return isinstance(source, str) and _scheme(source) == "data"


def describe(source: Any, kind: MediaKind = IMAGE) -> str:
    """Return a short description of a source for messages."""
    if isinstance(source, Image.Image):
        return f"a PIL image ({source.mode}, {source.width} x {source.height})"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{kind.noun} of {len(source)} bytes"
    text = str(source)
    if len(text) <= 80:
        return repr(text)
    # The end of a path names the file; of a URL or of encoded data, the beginning tells more.
    is_path = ":" not in text[:8] and PurePath(text).suffix
    return repr(f"...{text[-77:]}" if is_path else f"{text[:77]}...")


def _scheme(source: str) -> str:
    return source[:8].partition(":")[0].lower()


def _run_in_thread(coroutine: Coroutine[Any, Any, bytes]) -> bytes:
    """Run a coroutine in a thread of its own, since this thread may have a running event loop."""
    outcome: Future[bytes] = Future()
    thread = threading.Thread(
        target=_complete, args=(outcome, coroutine), name="vlcore-download", daemon=True
    )
    thread.start()
    try:
        return outcome.result()
    finally:
        if outcome.done():
            thread.join()
        del outcome  # an error refers to this frame, which must not refer to the error


def _complete(outcome: Future[bytes], coroutine: Coroutine[Any, Any, bytes]) -> None:
    try:
        result = asyncio.run(_catch(coroutine))
        if isinstance(result, bytes):
            outcome.set_result(result)
        else:
            outcome.set_exception(result)
            del result
    except BaseException as error:
        outcome.set_exception(error)
    finally:
        del outcome  # for the same reason


async def _catch(coroutine: Coroutine[Any, Any, bytes]) -> bytes | Exception:
    """Return an error instead of raising it: ``asyncio.run`` would refer to it."""
    try:
        return await coroutine
    except Exception as error:
        return error


def _read(source: object, name: str, limits: FileLimits, access: ImageAccess) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        _check_bytes(len(data), name, limits)
        return data
    if isinstance(source, Path):
        return _read_file(source, name, limits, access)
    if not isinstance(source, str):
        raise limits.kind.error(
            f"{limits.kind.noun} is {limits.kind.accepts}, not "
            f"{type(source).__name__}: {source!r:.80}"
        )
    scheme = _scheme(source)
    if scheme == "data":
        return read_data_url(source, name, limits.max_bytes, limits.kind)
    if scheme == "file":
        try:
            url = urlsplit(source)
            path = _path_of_url(url.path)
        except ValueError as error:
            raise limits.kind.error(f"{name} cannot be read: {error}") from error
        if url.netloc not in ("", "localhost"):
            raise limits.kind.error(f"{name} is a file of another host: file:///path is expected")
        return _read_file(path, name, limits, access)
    try:
        return _read_file(Path(source), name, limits, access)
    except (ImageError, VideoError) as error:
        if note := hint(source, limits.kind):
            raise limits.kind.error(f"{error}{note}") from error
        raise


def _path_of_url(path: str) -> Path:
    """Return the local path that the path of a ``file:`` URL stands for."""
    if os.name == "nt":
        return Path(url2pathname(path))
    # Before Python 3.14, url2pathname replaces bytes that are not UTF-8.
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(path))))


def _read_file(path: Path, name: str, limits: FileLimits, access: ImageAccess) -> bytes:
    try:
        with os.fdopen(open_file(path, name, access, limits.kind), "rb") as file:
            data = file.read(limits.max_bytes + 1)
    except FileNotFoundError as error:
        raise limits.kind.error(
            f"there is no file {name} (working directory {Path.cwd()})"
        ) from error
    except (ImageError, VideoError):
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: an unknown ~user
        raise limits.kind.error(f"{name} cannot be read: {error}") from error
    _check_bytes(len(data), name, limits)
    return data


def _check_bytes(num_bytes: int, name: str, limits: FileLimits) -> None:
    if num_bytes > limits.max_bytes:
        raise limits.kind.limit_error(
            f"{name} is larger than max_bytes={limits.max_bytes} of {limits.kind.limits}"
        )
