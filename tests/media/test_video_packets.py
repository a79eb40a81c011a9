from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from video_files import video_file

from vlcore import VideoError
from vlcore.media.video_packets import check_cost, is_shown

av = pytest.importorskip("av", reason="the extra vlcore[video] is not installed")

FULL_HD, SMALL = 1920 * 1080, 64 * 64


class Packet(bytes):
    """The bytes of a packet, with the header of its stream."""

    stream: Any = SimpleNamespace(codec_context=SimpleNamespace(extradata=b"\1\0\0\0\xff"))


def units(count: int, start: bytes = b"\0\0\1") -> Packet:
    return Packet((start + b"\x41\x9a\x00") * count)


@pytest.mark.parametrize(
    ("codec", "packet", "max_pixels"),
    [
        ("h264", units(1025), SMALL),
        ("h264", units(1025, start=(3).to_bytes(4)), SMALL),  # each after its length
        ("hevc", units(1025), SMALL),
        ("h264", units(50), 8192 * 8192),  # slices of large frames are costly
        ("mpeg2video", units(8193), SMALL),
        ("mjpeg", Packet(b"\xff\xda\0" * 129), FULL_HD),
        ("av1", Packet(b"\x32\1\0" * 65), FULL_HD),  # frames
        ("av1", Packet(b"\x1a\1\0" * 65), FULL_HD),  # frame headers
    ],
)
def test_a_packet_of_more_units_than_real_frames_have_is_refused(
    codec: str, packet: Any, max_pixels: int
) -> None:
    with pytest.raises(VideoError, match="coded parts"):
        check_cost(packet, codec, max_pixels, "'it'")
    part: Any = Packet(packet[: len(packet) // 200])
    check_cost(part, codec, max_pixels, "'it'")


@pytest.mark.parametrize(
    "packet",
    [
        Packet(b""),
        Packet(b"\xff" * 100),
        Packet(b"\x32" + b"\xff" * 20),  # a length that does not end
        Packet(b"\x36\0\1\0"),  # with an extension
        Packet(b"\x30abc"),  # the last unit has no length
    ],
)
@pytest.mark.parametrize("codec", ["av1", "h264", "hevc", "vp8"])
def test_damaged_packets_are_left_to_the_decoder(packet: Any, codec: str) -> None:
    check_cost(packet, codec, FULL_HD, "'it'")


@pytest.mark.parametrize(
    ("codec", "data", "shown"),
    [
        ("vp8", b"\x10\0\0", True),
        ("vp8", b"\x00\0\0", False),
        ("vp9", b"\x82\0\0", True),
        ("vp9", b"\x80\0\0", False),
        ("vp9", b"\x88\0\0", True),  # shows an existing frame
        ("vp9", b"\x80\0\xc0", True),  # a superframe
        ("vp9", b"\xb1\0\0", True),  # profile 3
        ("vp9", b"\xb2\0\0", False),
        ("h264", b"\0\0\0", True),
    ],
)
def test_a_packet_states_whether_it_is_shown(codec: str, data: bytes, shown: bool) -> None:
    assert is_shown(av.Packet(data), codec) is shown


def test_frames_that_are_only_references_are_not_counted() -> None:
    from vlcore import load_video

    options = {"auto-alt-ref": "1", "lag-in-frames": "10"}
    data = video_file(14, codec="libvpx", container="webm", options=options, gop=100)
    assert load_video(data).total_frames == 14
