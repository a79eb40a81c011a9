"""The bytes of an image file from a path, a URL or bytes, within limits."""

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

from vlcore.errors import ImageError, ImageLimitError
from vlcore.media.data_url import hint, read_data_url
from vlcore.media.download import download
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
    if is_web_url(source):
        return _run_in_thread(download(str(source), describe(source), limits, access))
    return _read(source, describe(source), limits, access)


def is_web_url(source: object) -> bool:
    """Return whether a source is an http(s) URL."""
    return isinstance(source, str) and _scheme(source) in ("http", "https")


def describe(source: Any) -> str:
    """Return a short description of a source for messages."""
    if isinstance(source, Image.Image):
        return f"a PIL image ({source.mode}, {source.width} x {source.height})"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"an image of {len(source)} bytes"
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


def _read(source: object, name: str, limits: ImageLimits, access: ImageAccess) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        _check_bytes(len(data), name, limits)
        return data
    if isinstance(source, Path):
        return _read_file(source, name, limits, access)
    if not isinstance(source, str):
        raise ImageError(
            "an image is a path, a URL, bytes or a PIL image, "
            f"not {type(source).__name__}: {source!r:.80}"
        )
    scheme = _scheme(source)
    if scheme == "data":
        return read_data_url(source, name, limits.max_bytes)
    if scheme == "file":
        try:
            url = urlsplit(source)
            path = _path_of_url(url.path)
        except ValueError as error:
            raise ImageError(f"{name} cannot be read: {error}") from error
        if url.netloc not in ("", "localhost"):
            raise ImageError(f"{name} is a file of another host: file:///path is expected")
        return _read_file(path, name, limits, access)
    try:
        return _read_file(Path(source), name, limits, access)
    except ImageError as error:
        if note := hint(source):
            raise ImageError(f"{error}{note}") from error
        raise


def _path_of_url(path: str) -> Path:
    """Return the local path that the path of a ``file:`` URL stands for."""
    if os.name == "nt":
        return Path(url2pathname(path))
    # Before Python 3.14, url2pathname replaces bytes that are not UTF-8.
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(path))))


def _read_file(path: Path, name: str, limits: ImageLimits, access: ImageAccess) -> bytes:
    try:
        with os.fdopen(open_file(path, name, access), "rb") as file:
            data = file.read(limits.max_bytes + 1)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {name} (working directory {Path.cwd()})") from error
    except ImageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: an unknown ~user
        raise ImageError(f"{name} cannot be read: {error}") from error
    _check_bytes(len(data), name, limits)
    return data


def _check_bytes(num_bytes: int, name: str, limits: ImageLimits) -> None:
    if num_bytes > limits.max_bytes:
        raise ImageLimitError(
            f"{name} is larger than max_bytes={limits.max_bytes} of vlcore.ImageLimits"
        )
