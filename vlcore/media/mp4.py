"""The number of samples that an MP4 or MOV file states, which are checked before it is opened.

FFmpeg allocates an entry for each sample as soon as it reads a table, and a table of equal samples
states billions of them in a few bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vlcore.errors import VideoLimitError

_MAX_SAMPLES = 4_000_000
"""Number of samples of all tracks, which take about 40 bytes each."""
_MAX_BOXES = 100_000
_MEDIA_DATA = b"mdat"


def check_sample_counts(data: bytes, name: str) -> None:
    """Check the number of samples of a file, if it is MP4 or MOV.

    Raises:
        VideoLimitError: the file states too many samples.

    Source: ISO/IEC 14496-12, sections 8.6.1.2 (stts), 8.7.3.2 (stsz) and 8.8.8 (trun).
    """
    count = 0
    for number, (kind, start, end) in enumerate(_boxes(data, 0, len(data))):
        if number == _MAX_BOXES:
            raise VideoLimitError(f"{name} has more than {_MAX_BOXES} boxes")
        if kind == _MEDIA_DATA:
            continue
        # The demuxer reads tables in boxes of any kind, so they are searched for in all of them.
        for tag in (b"stsz", b"stz2", b"trun"):
            position = data.find(tag, start, end)
            while position >= 0:
                offset = position + (8 if tag == b"trun" else 12)
                count += _number(data, offset)
                position = data.find(tag, position + 4, end)
        if kind == b"moov":
            count -= sum(_uncompressed_samples(data, start, end))
    if count > _MAX_SAMPLES:
        raise VideoLimitError(f"{name} states {count} samples; at most {_MAX_SAMPLES} are read")


def _uncompressed_samples(data: bytes, start: int, end: int) -> Iterator[int]:
    """Yield the number of samples of tracks of uncompressed sound, which take no entries."""
    for kind, first, last in _boxes(data, start, end):
        track = data[first:last] if kind == b"trak" else b""
        times = track.find(b"stts")
        if b"soun" not in track or b"vide" in track or times < 0:
            continue
        if (_number(track, times + 8), _number(track, times + 16)) == (1, 1):
            yield _number(track, track.find(b"stsz") + 12)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each box, and where its content begins and ends."""
    position = start
    while position + 8 <= end:
        size, header = _number(data, position), 8
        kind = data[position + 4 : position + 8]
        if size == 1 and position + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, position + 8)
            header = 16
        if size == 0:
            size = end - position
        size = max(size, header)
        yield kind, position + header, min(position + size, end)
        position += size


def _number(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4])
