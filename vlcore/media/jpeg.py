"""The structure of a JPEG file: its scans, and whether it has an end.

Decoding takes time for each scan, even for one of ten bytes, so scans are counted first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlcore.errors import ImageLimitError

SIGNATURE = b"\xff\xd8\xff"
END_MARKER = b"\xff\xd9"
MAX_SCANS = 100
"""More are refused. Encoders write ten or so."""
MAX_SCANNED_PIXELS = 2**31
"""Width times height times the number of scans: what a decoder works through."""
_MAX_SEGMENTS = 10_000
_CHUNK = 2**20
_MAX_PADDING = 16
"""A file that ends in more zero bytes than this was probably not written to its end."""

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7\x01]")
"""A marker, without stuffed bytes, fill bytes and restart markers."""
_NOISE = b"".join(
    bytes((37 * i * i + 11 * i + 234) % 255 for i in range(256)) + bytes([0xFF, 0xD0 + marker])
    for marker in range(8)
)
"""Data that changes the image of an incomplete scan. It begins with long codes, also after each of
the restart markers, with which a decoder synchronises."""
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_SCAN, _END, _START = 0xDA, 0xD9, 0xD8


@dataclass(frozen=True)
class JpegStructure:
    """The frame and the scans of a JPEG file."""

    width: int
    height: int
    num_components: int
    num_scans: int
    has_end: bool
    """Whether the end marker was found."""
    is_covered: bool
    """Whether the scans that have begun contain every coefficient at full precision."""

    @property
    def coefficient_bytes(self) -> int:
        """The memory of all coefficients, which a decoder keeps if there are several scans."""
        return 2 * self.width * self.height * self.num_components * (self.num_scans > 1)

    @property
    def may_lack_only_the_end(self) -> bool:
        """Whether nothing but the end marker, and data of the last scan, can be missing."""
        return not self.has_end and self.is_covered


def read_structure(data: bytes, name: str) -> JpegStructure:
    """Read the structure of a JPEG file, without decoding it.

    Args:
        data: the file, which begins with :data:`SIGNATURE`.
        name: the name of the image in messages.

    Raises:
        ImageLimitError: it has more scans or segments than any useful image.
    """
    frame: tuple[int, int, tuple[int, ...]] = (0, 0, ())
    scans: list[bytes] = []
    has_end = False
    is_broken = False
    position = 2
    for number in range(_MAX_SEGMENTS + 1):
        position = _find_marker(data, position)
        if position < 0:
            break
        if number == _MAX_SEGMENTS:
            raise ImageLimitError(f"{name} has more than {_MAX_SEGMENTS} segments")
        marker, position = data[position + 1], position + 2
        if marker == _END:
            has_end = True
            break
        if marker == _START:
            continue
        length = int.from_bytes(data[position : position + 2])
        segment = data[position + 2 : position + length]
        if len(segment) < length - 2 or length < 2:
            is_broken = True
            break
        position += length
        if marker in _FRAMES and len(segment) >= 6:
            height, width = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
            frame = (width, height, tuple(segment[6 : 6 + 3 * segment[5] : 3]))
        elif marker == _SCAN:
            scans.append(segment)
            if len(scans) > MAX_SCANS or frame[0] * frame[1] * len(scans) > MAX_SCANNED_PIXELS:
                raise ImageLimitError(
                    f"{name} has {len(scans)} or more scans of {frame[0]} x {frame[1]} pixels, "
                    f"which take too long to decode: at most {MAX_SCANS} scans, and "
                    f"{MAX_SCANNED_PIXELS} pixels in all of them, are allowed. Save it again as "
                    "a baseline JPEG"
                )
    width, height, components = frame
    return JpegStructure(
        width,
        height,
        len(components),
        len(scans),
        has_end,
        not is_broken and _cover(scans, components),
    )


def _find_marker(data: bytes, position: int) -> int:
    """Return the position of the next marker, or -1; other threads may run between two chunks."""
    for start in range(position, len(data), _CHUNK):
        if match := _MARKER.search(data, start, start + _CHUNK + 1):
            return match.start()
    return -1


def _cover(scans: Sequence[bytes], components: tuple[int, ...]) -> bool:
    """Return whether scans contain every coefficient of every component at full precision."""
    missing = {component: set(range(64)) for component in components}
    for scan in scans:
        num_components = scan[0] if scan else 0
        if len(scan) != 4 + 2 * num_components:
            return False
        first, last, precision = scan[-3:]
        for component in scan[1 : 1 + 2 * num_components : 2]:
            if precision & 0x0F == 0:
                missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(components) and not any(missing.values())


def with_end(data: bytes) -> tuple[bytes, bytes] | None:
    """Append the end marker to a file without one.

    Returns:
        Two versions of the file. If they decode alike, no data of the image was missing: the
        second has other data before the end marker, which only an incomplete scan would use.
        ``None`` if the file ends in padding.
    """
    if data.endswith(b"\0" * _MAX_PADDING):
        return None
    data = data.removesuffix(b"\xff")
    return data + END_MARKER, data + _NOISE + END_MARKER
