"""PNG files without their text and colour profiles, which are not needed and can be very large."""

from __future__ import annotations

import zlib

from vlcore.errors import ImageLimitError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 65_536
_MAX_TEXT_BYTES = 2**20
"""Of metadata that is kept, after it is inflated."""
_METADATA = frozenset({b"iCCP", b"tEXt", b"zTXt", b"iTXt"})
_ORIENTATION_KEYWORDS = frozenset({b"Raw profile type exif", b"XML:com.adobe.xmp"})


def without_metadata(data: bytes, name: str) -> bytes:
    """Remove text and colour profiles from a PNG file, except text with the orientation.

    Args:
        data: the file, which begins with :data:`SIGNATURE`.
        name: the name of the image in messages.

    Raises:
        ImageLimitError: it has more chunks than any useful image.
    """
    kept: list[memoryview] = []
    view = memoryview(data)
    keywords: set[bytes] = set()
    start = position = len(SIGNATURE)
    kept.append(view[:start])
    num_chunks = 0
    while position + 12 <= len(data):
        num_chunks += 1
        if num_chunks > _MAX_CHUNKS:
            raise ImageLimitError(f"{name} has more than {_MAX_CHUNKS} chunks")
        length = int.from_bytes(view[position : position + 4])
        kind = bytes(view[position + 4 : position + 8])
        end = position + 12 + length
        if kind in _METADATA and not _has_orientation(kind, view[position + 8 : end - 4], keywords):
            kept.append(view[start:position])
            start = end
        position = end
        if kind == b"IEND":
            break
    if start == len(SIGNATURE):
        return data
    kept.append(view[start:])
    return b"".join(kept)


def _has_orientation(kind: bytes, body: memoryview, keywords: set[bytes]) -> bool:
    """Return whether a chunk is the first of its keyword with an orientation, and not too large."""
    keyword, _, rest = bytes(body[: _MAX_TEXT_BYTES + 1]).partition(b"\0")
    if keyword not in _ORIENTATION_KEYWORDS or keyword in keywords or len(body) > _MAX_TEXT_BYTES:
        return False
    keywords.add(keyword)
    if kind == b"zTXt":
        return _is_small(rest[1:])
    if kind == b"iTXt" and rest[:1] == b"\1":
        return _is_small(rest[2:].partition(b"\0")[2].partition(b"\0")[2])
    return True


def _is_small(compressed: bytes) -> bool:
    try:
        return len(zlib.decompressobj().decompress(compressed, _MAX_TEXT_BYTES)) < _MAX_TEXT_BYTES
    except zlib.error:
        return False
