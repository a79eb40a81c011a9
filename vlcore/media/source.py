"""The bytes of an image's file: a path, a URL, a ``data:`` URL or bytes, within limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from PIL import Image

from vlcore.errors import ImageError, ImageLimitError
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
    """Read or download the bytes of a picture's file; may be called inside a running loop too.

    Raises:
        ImageError: it is missing, not allowed, or cannot be fetched.
        ImageLimitError: it is larger than a limit.
    """
    if is_web_url(source):
        return _run_aside(download(str(source), describe(source), limits, access))
    return _read(source, describe(source), limits, access)


def is_web_url(source: object) -> bool:
    """Say whether a source is to be downloaded."""
    return isinstance(source, str) and _scheme(source) in ("http", "https")


def describe(source: Any) -> str:
    """Name a source in a message, briefly."""
    if isinstance(source, Image.Image):
        return f"a PIL image ({source.mode}, {source.width} x {source.height})"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"a picture of {len(source)} bytes"
    text = str(source)
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _scheme(source: str) -> str:
    return source[:8].partition(":")[0].lower()


def _run_aside(coroutine: Coroutine[Any, Any, bytes]) -> bytes:
    """Run on a loop of its own in a thread: this thread may have a running one."""
    outcome: Future[bytes] = Future()

    def run() -> None:
        try:
            outcome.set_result(asyncio.run(coroutine))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="vlcore-download", daemon=True)
    thread.start()
    try:
        return outcome.result()
    finally:
        if outcome.done():
            thread.join()


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
        return _read_data_url(source, name, limits)
    if scheme == "file":
        try:
            url = urlsplit(source)
        except ValueError as error:
            raise ImageError(f"{name} cannot be read: {error}") from error
        if url.netloc not in ("", "localhost"):
            raise ImageError(f"{name} is a file of another machine: file:///path is expected")
        return _read_file(Path(url2pathname(url.path)), name, limits, access)
    return _read_file(Path(source), name, limits, access)


def _read_file(path: Path, name: str, limits: ImageLimits, access: ImageAccess) -> bytes:
    try:
        with os.fdopen(open_file(path, name, access), "rb") as file:
            data = file.read(limits.max_bytes + 1)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {name} (working directory {Path.cwd()})") from error
    except ImageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a ~user nobody has
        raise ImageError(f"{name} cannot be read: {error}") from error
    _check_bytes(len(data), name, limits)
    return data


def _read_data_url(url: str, name: str, limits: ImageLimits) -> bytes:
    header, comma, body = url.partition(",")
    if not comma:
        raise ImageError(f"{name} is no data URL: data:image/png;base64,… is expected")
    _check_bytes(len(body) * 3 // 4, name, limits)
    if not header.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote_to_bytes(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name} holds damaged base64: {error}") from error


def _check_bytes(num_bytes: int, name: str, limits: ImageLimits) -> None:
    if num_bytes > limits.max_bytes:
        raise ImageLimitError(
            f"{name} is larger than max_bytes={limits.max_bytes} of vlcore.ImageLimits"
        )
