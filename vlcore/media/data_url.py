"""The content of ``data:`` URLs, as browsers read them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator

import numpy as np

from vlcore.errors import VlcoreError
from vlcore.media.kind import IMAGE, MediaKind

_CHUNK = 2**20
_MAX_EXPANSION = 4
"""How many characters of a URL may be written for one byte of its content, at most: three, and some
white space."""
_SPACE = b" \t\n\r\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def read_data_url(url: str, name: str, max_bytes: int, kind: MediaKind = IMAGE) -> bytes:
    """Decode a ``data:`` URL.

    Base64 may contain white space, lack its padding, and use the URL-safe alphabet. Parameters of
    the media type are ignored, and so is a fragment.

    Args:
        url: the URL.
        name: the name of the file in messages.
        max_bytes: the largest size of the content.
        kind: the kind of the file, which determines the errors.

    Raises:
        ImageError, VideoError: the URL is malformed.
        ImageLimitError, VideoLimitError: the content is larger than ``max_bytes``.

    Source: https://fetch.spec.whatwg.org/#data-urls and https://infra.spec.whatwg.org/#forgiving-base64
    """

    def too_large() -> VlcoreError:
        return kind.limit_error(f"{name} is larger than max_bytes={max_bytes} of {kind.limits}")

    header, comma, body = url.partition(",")
    if not comma:
        raise kind.error(f"{name} is not a data URL: {kind.example} is expected")
    body = body.partition("#")[0]
    if len(body) > _MAX_EXPANSION * (max_bytes + 4):
        raise too_large()
    _, *parameters = header.split(";")
    is_base64 = any(parameter.strip().lower() == "base64" for parameter in parameters)
    if not is_base64:
        return _join(_percent_decoded(body), max_bytes, too_large)
    removed = (chunk.translate(_URL_SAFE, _SPACE) for chunk in _percent_decoded(body))
    text = _join(removed, max_bytes * 4 // 3 + 4, too_large).rstrip(b"=")
    if len(text) * 3 // 4 > max_bytes:
        raise too_large()
    try:
        if b"=" in text:
            raise ValueError("there is data after the padding")
        return b"".join(_base64_decoded(text + b"=" * (-len(text) % 4)))
    except (binascii.Error, ValueError) as error:
        raise kind.error(f"{name} holds damaged base64: {error}") from error


def hint(source: str, kind: MediaKind = IMAGE) -> str:
    """Return what to write before a text that is base64 without ``data:``; or an empty text."""
    for beginning, media_type in kind.media_types.items():
        if source.startswith(beginning) and len(source) > 64:
            return f". It looks like base64: write data:{media_type};base64, before it"
    return ""


def _base64_decoded(text: bytes) -> Iterator[bytes]:
    """Decode chunk by chunk; other threads may run between two chunks."""
    for start in range(0, len(text), _CHUNK):
        yield base64.b64decode(text[start : start + _CHUNK], validate=True)


def _join(chunks: Iterator[bytes], max_length: int, too_large: Callable[[], VlcoreError]) -> bytes:
    joined = bytearray()
    for chunk in chunks:
        joined += chunk
        if len(joined) > max_length:
            raise too_large()
    return bytes(joined)


def _percent_decoded(text: str) -> Iterator[bytes]:
    """Replace escapes such as ``%2B`` by their bytes, chunk by chunk, in little memory."""
    start = 0
    while start < len(text):
        end = min(start + _CHUNK, len(text))
        if end < len(text) and "%" in text[end - 2 : end]:
            end = text.rindex("%", end - 2, end)  # an escape belongs to one chunk
        yield _unescape(text[start:end].encode("utf-8", "surrogatepass"))
        start = end


def _unescape(data: bytes) -> bytes:
    if b"%" not in data:
        return data
    values = np.frombuffer(data, dtype=np.uint8)
    escapes = np.flatnonzero(values[:-2] == ord("%"))
    high, low = _DIGITS[values[escapes + 1]], _DIGITS[values[escapes + 2]]
    is_valid = (high >= 0) & (low >= 0)
    escapes = escapes[is_valid]
    decoded = values.copy()
    decoded[escapes] = (high * 16 + low)[is_valid]
    keeps = np.ones(len(values), dtype=bool)
    keeps[escapes + 1] = keeps[escapes + 2] = False
    return decoded[keeps].tobytes()


def _digits() -> np.ndarray:
    values = np.full(256, -1, dtype=np.int16)
    for value in range(16):
        for digit in f"{value:x}{value:X}":
            values[ord(digit)] = value
    return values


_DIGITS = _digits()
