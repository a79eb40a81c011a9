"""What a compressed frame of a video states about itself: whether it is shown, and its cost.

A decoder cannot be interrupted while it decodes one packet. So a packet may not hold more coded
units, each of which can cost as much as a whole frame, than real videos have.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vlcore.errors import VideoError

if TYPE_CHECKING:
    from av import Packet

_MAX_UNITS = {
    "av1": 64,
    "h264": 1024,
    "hevc": 1024,
    "mjpeg": 128,
    "mpeg1video": 8192,
    "mpeg2video": 8192,
}
"""Maximum number of coded units in a packet: frames of AV1, NAL units (slices) of H.264 and HEVC,
scans of JPEG, and slices of MPEG."""
_MAX_UNIT_PIXELS = 2**31
_MIN_UNITS = 32
"""A slice of H.264 or HEVC takes about 1.5 ns for each pixel of the frame. So large frames may have
fewer, but at least this many."""
_START_CODE = b"\0\0\1"
_SCAN = b"\xff\xda"
_AV1_FRAMES = (3, 6)


def check_cost(packet: Packet[Any], codec: str, max_pixels: int, name: str) -> None:
    """Check that a packet does not hold more coded units than a frame of a real video.

    Args:
        packet: the packet, which is a frame in most codecs.
        codec: the name of the codec.
        max_pixels: the size of the largest frame that will be decoded.
        name: the name of the video in messages.

    Raises:
        VideoError: it holds more.
    """
    if (limit := _MAX_UNITS.get(codec)) is None:
        return  # one frame for each packet, which the decoder decodes once
    if codec in ("h264", "hevc"):
        limit = min(limit, max(_MAX_UNIT_PIXELS // max_pixels, _MIN_UNITS))
    data = bytes(packet)
    if codec == "av1":
        count = _count(_av1_frames(data), limit)
    elif codec == "mjpeg":
        count = data.count(_SCAN)
    else:
        count = data.count(_START_CODE)
    if codec in ("h264", "hevc"):
        count = max(count, _count(_nal_units(data, _length_bytes(packet, codec)), limit))
    if count > limit:
        raise VideoError(f"{name} has a frame of more than {limit} coded parts, which is damaged")


def is_shown(packet: Packet[Any], codec: str) -> bool:
    """Return whether a packet is a frame that is shown, or only a reference for other frames.

    Source: RFC 6386, section 9.1 (VP8), and section 6.2 of the VP9 bitstream specification.
    """
    if codec not in ("vp8", "vp9"):
        return True
    data = memoryview(packet)
    first, last = data[0], data[-1]
    if codec == "vp8":
        return bool(first & 0b1_0000)
    if last & 0b1110_0000 == 0b1100_0000:
        return True  # a superframe, which contains one shown frame
    shift = 1 if first & 0b11_0000 == 0b11_0000 else 0  # profile 3 has a reserved bit
    shows_existing = first << shift & 0b1000
    return bool(shows_existing or first << shift & 0b10)


def _count(units: Iterator[object], limit: int) -> int:
    """Count units, but not far beyond a limit."""
    return sum(1 for _, _ in zip(range(limit + 1), units, strict=False))


def _length_bytes(packet: Packet[Any], codec: str) -> int:
    """Return how many bytes state the length of a NAL unit in MP4 and Matroska."""
    extradata = packet.stream.codec_context.extradata or b""
    position = 4 if codec == "h264" else 21
    return (extradata[position] & 3) + 1 if len(extradata) > position else 4


def _nal_units(data: bytes, length_bytes: int) -> Iterator[int]:
    """Yield the positions of units that follow each other with their lengths."""
    position = 0
    while position + length_bytes < len(data):
        yield position
        position += length_bytes + int.from_bytes(data[position : position + length_bytes])


def _av1_frames(data: bytes) -> Iterator[int]:
    """Yield the positions of frame headers.

    Source: section 5.3 of the AV1 bitstream specification.
    """
    position = 0
    while position < len(data):
        header = data[position]
        if header >> 3 & 0b1111 in _AV1_FRAMES:
            yield position
        position += 2 if header & 0b100 else 1
        if not header & 0b10:  # the last unit, which extends to the end
            return
        size, position = _leb128(data, position)
        position += size


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """Return a number of variable length and the position after it."""
    value = 0
    for index, byte in enumerate(data[position : position + 8]):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, position + index + 1
    return value, position + 8
