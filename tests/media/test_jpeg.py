from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlcore.errors import ImageError, ImageLimitError
from vlcore.media import jpeg
from vlcore.media.image import decode_image
from vlcore.media.policy import ImageLimits

END = b"\xff\xd9"
OPTIONS: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"quality": 95, "subsampling": 0},
    {"restart_marker_blocks": 5},
    {"progressive": True, "restart_marker_blocks": 3},
]


def photo(seed: int = 0, **options: Any) -> bytes:
    values = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize((300, 200), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def empty_scans(num_scans: int, size: int) -> bytes:
    """A progressive grey JPEG whose scans have no data: each takes time, and ten bytes."""
    frame = struct.pack(">BHHB3B", 8, size, size, 1, 1, 0x11, 0)
    table = bytes([0]) + bytes(64)
    codes = bytes([0, 1, *[0] * 15, 0])
    segments = ((0xDB, table), (0xC2, frame), (0xC4, codes), (0xC4, b"\x10" + codes[1:]))
    head = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
        for marker, body in segments
    )
    scan = b"\xff\xda" + struct.pack(">H", 8) + bytes([1, 1, 0, 0, 0, 0])
    return b"\xff\xd8" + head + scan * num_scans + END


# -- scans


def test_scans_are_counted_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcore.media.image._open", None)
    with pytest.raises(ImageLimitError, match="scans of 8000 x 8000 pixels"):
        decode_image(empty_scans(6000, 8000), "it")
    with pytest.raises(ImageLimitError, match="or more scans of 8 x 8"):
        decode_image(empty_scans(jpeg.MAX_SCANS + 1, 8), "it")


@pytest.mark.parametrize(("num_scans", "size"), [(jpeg.MAX_SCANS, 64), (33, 8000), (100, 4600)])
def test_the_pixels_of_all_scans_are_limited(num_scans: int, size: int) -> None:
    structure = jpeg.read_structure(empty_scans(num_scans, size), "it")
    assert (structure.num_scans, structure.width, structure.has_end) == (num_scans, size, True)
    if size > 100:
        with pytest.raises(ImageLimitError, match="take too long to decode"):
            jpeg.read_structure(empty_scans(num_scans + 1, size), "it")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ordinary_files_are_within_the_limit(options: dict[str, Any]) -> None:
    structure = jpeg.read_structure(photo(**options), "it")
    assert structure.num_scans == (10 if options.get("progressive") else 1)
    assert (structure.width, structure.height, structure.num_components) == (300, 200, 3)
    assert (structure.coefficient_bytes > 0) == (structure.num_scans > 1)


def test_scans_between_fill_bytes_and_restart_markers_are_counted() -> None:
    data = empty_scans(5, 64).replace(b"\xff\xda", b"\xff\xd0\xff\xff\xff\xda")
    assert jpeg.read_structure(data, "it").num_scans == 5


def test_a_scan_marker_inside_of_metadata_is_not_counted() -> None:
    data = photo(comment=b"\xff\xda\x00\x08" * 1000)
    assert jpeg.read_structure(data, "it").num_scans == 1
    assert decode_image(data, "it").size == (300, 200)


def test_very_many_segments_are_refused() -> None:
    data = photo()
    data = data[:2] + b"\xff\xe5\x00\x02" * 20_000 + data[2:]
    with pytest.raises(ImageLimitError, match="more than 10000 segments"):
        decode_image(data, "it")


# -- the end


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shrinks", [False, True])
def test_a_file_without_its_end_marker_is_the_whole_image(
    options: dict[str, Any], shrinks: bool
) -> None:
    data = photo(**options)
    assert data.endswith(END)
    needed = (lambda _: (40, 30)) if shrinks else None
    whole = decode_image(data, "it", needed_size=needed)
    for cut in (data[:-1], data[:-2]):
        assert decode_image(cut, "it", needed_size=needed).tobytes() == whole.tobytes()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_file_that_is_cut_in_the_middle_is_an_error(options: dict[str, Any]) -> None:
    data = photo(**options)
    for length in range(30, len(data) - 30, len(data) // 40):
        with pytest.raises(ImageError, match=r"damaged|header"):
            decode_image(data[:length], "it")


def test_a_file_that_ends_between_two_scans_is_an_error() -> None:
    data = photo(progressive=True)
    last_scan = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data[:last_scan], "it")


def test_a_file_whose_end_is_blank_is_an_error() -> None:
    data = photo()
    with pytest.raises(ImageError, match="truncated"):
        decode_image(data[: len(data) // 2].ljust(len(data), b"\0"), "it")


def test_two_decodings_count_once() -> None:
    data = photo()[:-2]
    limits = ImageLimits(max_pixels=60_000)
    assert decode_image(data, "it", limits).size == (300, 200)
