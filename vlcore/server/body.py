"""``JsonBody``: a request body in which large data URLs are not parsed as JSON."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import numpy as np

from vlcore.server.errors import ApiError

_MIN_URL_BYTES = 16 * 1024
"""Size above which a data URL is taken out of the body."""
_SLICE_BYTES = 1024 * 1024
"""Bytes that are processed in one step. Between the steps, other threads can run."""
_MAX_COUNTS = {b",": 65_536, b":": 16_384, b"{": 8_192, b"[": 8_192}
"""Maximum number of JSON values, of keys, and of containers, as characters outside of strings."""
_MAX_URLS = 4096
"""Maximum number of data URLs that are looked for."""
_START = b'"data:'


class JsonBody:
    """The body of a request, its data URLs apart.

    A JSON parser holds Python's lock while it parses, and the event loop waits. Images are most of
    a body, so their data URLs are replaced by short strings before. What remains is bounded in its
    size and in the number of its values, each of which takes far more memory than its bytes.

    Args:
        body: The body.
        max_text_bytes: Maximum size of the remaining body.

    Raises:
        ApiError: The remaining body is too large, or has too many values.
    """

    def __init__(self, body: bytes, max_text_bytes: int) -> None:
        self._prefix = f"data-url-{secrets.token_hex(16)}-"
        self._urls: dict[str, str] = {}
        self.text = b"".join(self._split(body))
        """The body with placeholders instead of large data URLs, as JSON."""
        if len(self.text) > max_text_bytes:
            raise ApiError(
                413,
                "body_too_large",
                f"the request body without its data URLs is larger than {max_text_bytes} bytes "
                "(max_text_bytes)",
            )
        for character, limit in _MAX_COUNTS.items():
            if _has_more(self.text, character, limit):
                raise ApiError(
                    400,
                    "invalid_value",
                    f"the request body has too many values: more than {limit} times "
                    f"{character.decode()!r} outside of strings",
                )

    def restore(self, text: str) -> str:
        """Return the data URL that a placeholder stands for, and any other text unchanged."""
        return self._urls.get(text, text)

    def _split(self, body: bytes) -> Iterator[bytes]:
        """Yield the parts of the body between data URLs, and placeholders."""
        position = 0
        search = 0
        for _ in range(_MAX_URLS):
            start = body.find(_START, search)
            end = body.find(b'"', start + 1)
            if start < 0 or end < 0:
                break
            search = end
            # A quote after a backslash is a part of a string.
            is_string = body[start - 1 : start] != b"\\" and body[end - 1 : end] != b"\\"
            if not is_string or end - start < _MIN_URL_BYTES:
                continue
            url = _decode(body[start + 1 : end])
            if url is not None:
                placeholder = f"{self._prefix}{len(self._urls)}"
                self._urls[placeholder] = url
                yield body[position:start]
                yield b'"' + placeholder.encode() + b'"'
                position = search = end + 1
        yield body[position:]


def _has_more(text: bytes, character: bytes, limit: int) -> bool:
    """Return whether JSON has a character more than ``limit`` times outside of its strings.

    What follows a syntax error is counted wrongly, and no parser reads it.
    """
    if sum(part.count(character) for part in _slices(text)) <= limit:
        return False  # texts rarely have so many either
    count = 0
    is_inside = False
    for part in _slices(_without_escapes(text)):
        values = np.frombuffer(part, np.uint8)
        inside = np.logical_xor.accumulate(values == ord('"')) ^ is_inside
        count += int(np.count_nonzero((values == ord(character)) & ~inside))
        is_inside = bool(inside[-1])
    return count > limit


def _without_escapes(text: bytes) -> bytes:
    r"""Replace escaped backslashes and quotes, so that every quote begins or ends a string."""
    return text.replace(b"\\\\", b"__").replace(b'\\"', b"__")


def _decode(content: bytes) -> str | None:
    r"""Decode a JSON string; ``None`` if it has escapes other than ``\/`` and line breaks."""
    parts = []
    for part in _slices(content):
        if not part.isascii():
            return None
        parts.append(part.decode("ascii"))
    text = "".join(parts)
    if "\\" in text:
        text = text.replace("\\/", "/").replace("\\n", "\n").replace("\\r", "\r")
        if "\\" in text:
            return None
    return text


def _slices(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _SLICE_BYTES):
        yield data[start : start + _SLICE_BYTES]
