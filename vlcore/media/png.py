"""PNG files without the chunks that pixels do not depend on, which can be damaged or very large."""

from __future__ import annotations

import zlib

from vlcore.errors import ImageLimitError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 65_536
_MAX_TEXT_BYTES = 2**20
"""Of metadata that is kept, after it is inflated."""
_ANCILLARY_BIT = 0x20
_KEPT = frozenset({b"acTL", b"fcTL", b"fdAT"})
"""Ancillary chunks of animations."""
_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_TRANSPARENCY_BYTES = {0: 2, 2: 6, 3: 0}
"""Minimum size of the transparency for each type of colour."""
_COLOUR_TYPE = 25
"""Position of the type of colour in a file."""
_ORIENTATION_KEYWORDS = frozenset({b"Raw profile type exif", b"XML:com.adobe.xmp"})


def without_metadata(data: bytes, name: str) -> bytes:
    """Remove the ancillary chunks of a PNG file, except its transparency and its orientation.

    As in browsers, what is removed may be damaged.

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
        is_ancillary = kind.isalpha() and kind[0] & _ANCILLARY_BIT
        if is_ancillary and not _is_needed(kind, view[position:end], data, keywords):
            kept.append(view[start:position])
            start = end
        position = end
        if kind == b"IEND":
            break
    if start == len(SIGNATURE):
        return data
    kept.append(view[start:])
    return b"".join(kept)


def _is_needed(kind: bytes, chunk: memoryview, data: bytes, keywords: set[bytes]) -> bool:
    """Return whether an ancillary chunk is intact, and the image depends on it."""
    body = chunk[8:-4]
    if kind in _KEPT:
        return True
    if kind == b"tRNS":
        is_needed = len(body) >= _TRANSPARENCY_BYTES.get(data[_COLOUR_TYPE], 0)
    else:
        is_needed = kind == b"eXIf" or (kind in _TEXT and _has_orientation(kind, body, keywords))
    return is_needed and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


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
