from __future__ import annotations

import pytest
from video_files import sound_file, video_file

from vlcore import VideoLimitError, load_video
from vlcore.media import mp4
from vlcore.media.mp4 import check_sample_counts

pytest.importorskip("av", reason="the extra vlcore[video] is not installed")

MANY = (2**31 - 1).to_bytes(4)


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return (8 + len(body)).to_bytes(4) + kind + body


def sizes(count: bytes, size: int = 1) -> bytes:
    return box(b"stsz", bytes(4), size.to_bytes(4), count)


def times(*entry: int) -> bytes:
    return box(b"stts", bytes(4), (1).to_bytes(4), *(value.to_bytes(4) for value in entry))


def track(handler: bytes, *tables: bytes) -> bytes:
    header = box(b"hdlr", bytes(8), handler, bytes(12))
    return box(b"trak", box(b"mdia", header, box(b"minf", box(b"stbl", *tables))))


@pytest.mark.parametrize(
    "data",
    [
        box(b"moov", track(b"vide", sizes(MANY), times(1, 1))),
        box(b"moov", track(b"soun", sizes(MANY), times(1, 1024))),
        box(b"moov", track(b"soun", sizes(MANY), times(1, 1), b"vide")),
        box(b"moov", *[track(b"vide", sizes((10**6).to_bytes(4)))] * 5),
        box(b"free", sizes(MANY)),
        box(b"moof", box(b"traf", box(b"trun", bytes(4), MANY))),
        box(b"ftyp") + (1).to_bytes(4) + b"moof" + (99).to_bytes(8) + box(b"trun", bytes(4), MANY),
        box(b"ftyp") + bytes(4) + b"moov" + sizes(MANY),
    ],
    ids=[
        "video", "compressed sound", "two handlers", "many tracks", "another box", "fragment",
        "64-bit size", "size to the end",
    ],
)  # fmt: skip
def test_tables_of_absurdly_many_samples_are_refused(data: bytes) -> None:
    with pytest.raises(VideoLimitError, match="samples; at most"):
        check_sample_counts(data, "'it'")


@pytest.mark.parametrize(
    "data",
    [
        video_file(14),
        video_file(14, container="matroska"),
        sound_file(),
        box(b"moov", track(b"soun", sizes((10**8).to_bytes(4), 4), times(1, 1))),
        box(b"mdat", sizes(MANY)),
        b"",
        b"\0\0\0",
        b"\xff" * 100,
        b"\0\0\0\1moov",
        b"\0\0\0\5moov" * 10,
    ],
    ids=range(10),
)
def test_other_files_are_left_to_the_demuxer(data: bytes) -> None:
    check_sample_counts(data, "'it'")


def test_a_table_of_samples_that_the_file_does_not_have_is_refused_before_it_is_opened() -> None:
    data = bytearray(video_file(4))
    position = data.index(b"stsz") + 8
    data[position : position + 8] = (1).to_bytes(4) + MANY
    with pytest.raises(VideoLimitError, match="states 2147483647 samples"):
        load_video(bytes(data))


def test_a_file_of_very_many_boxes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp4, "_MAX_BOXES", 5)
    check_sample_counts(box(b"free") * 5, "'it'")
    with pytest.raises(VideoLimitError, match="more than 5 boxes"):
        check_sample_counts(box(b"free") * 6, "'it'")
