from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from vlcore.media.image import decode_image, load_image
from vlcore.media.orientation import orientation_in

ORIENTATION = 0x0112


def exif_of(orientation: Any, order: str = "<", tag: int = ORIENTATION, kind: int = 3) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    head = b"Exif\0\0" + mark + struct.pack(f"{order}HI", 42, 8)
    entry = struct.pack(f"{order}HHIHH", tag, kind, 1, orientation, 0)
    return head + struct.pack(f"{order}H", 1) + entry + bytes(4)


def drawing() -> Image.Image:
    return Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5)


def encoded(file_format: str, exif: bytes | Image.Exif | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    given = {} if exif is None else {"exif": exif}
    image = drawing().resize((64, 32), Image.Resampling.NEAREST)
    image.save(buffer, file_format, **given, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_found_in_both_byte_orders(order: str, orientation: int) -> None:
    assert orientation_in(exif_of(orientation, order)) == orientation


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_by_pillow(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(file_format, exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    loaded = load_image(data)
    assert loaded.size == expected.size
    assert loaded.tobytes() == expected.tobytes()
    assert ORIENTATION not in loaded.getexif()


UNREADABLE = [
    b"Exif\0\0",
    b"Exif\0\0II",
    b"Exif\0\0XX*\0\x08\0\0\0",
    exif_of(6)[:-8],
    exif_of(6)[:15],
    b"Exif\0\0II*\0" + struct.pack("<I", 2**32 - 1),
    exif_of(6).replace(struct.pack("<HI", 42, 8), struct.pack("<HI", 42, 10**6)),
    exif_of(0),
    exif_of(9),
    exif_of(6, kind=2),
    exif_of(6, tag=0x0111),
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(100),
]


@pytest.mark.parametrize("exif", UNREADABLE, ids=range(len(UNREADABLE)))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("shrinks", [False, True])
def test_unreadable_metadata_is_an_unknown_orientation(
    exif: bytes, file_format: str, shrinks: bool
) -> None:
    options: dict[str, Any] = {"dpi": (72, 72)} if file_format == "JPEG" else {}
    needed = (lambda _: (8, 4)) if shrinks else None
    plain = decode_image(encoded(file_format, **options), "it", needed_size=needed)
    damaged = decode_image(encoded(file_format, exif, **options), "it", needed_size=needed)
    assert damaged.tobytes() == plain.tobytes()


def test_values_of_other_tags_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An EXIF directory of tags whose values overlap takes gigabytes where all of it is read."""

    def load(*_: object) -> None:
        raise AssertionError("all of the metadata was read")

    num_tags = 60_000
    entries = b"".join(
        struct.pack("<HHII", 0x8000 + number % 0x7000, 7, 900_000, 8) for number in range(num_tags)
    )
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, num_tags) + entries + bytes(200_000)
    data = encoded("PNG", exif)
    monkeypatch.setattr(Image.Exif, "load", load)
    assert load_image(data).size == (64, 32)


@pytest.mark.parametrize("text", ['<x tiff:Orientation="6"/>', "<tiff:Orientation>6</tiff:Orient"])
def test_the_orientation_in_xmp_is_used_without_exif(text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", text)
    assert load_image(encoded("PNG", pnginfo=info)).size == (32, 64)
    assert load_image(encoded("JPEG", xmp=text.encode())).size == (32, 64)
    assert load_image(encoded("PNG", exif_of(3), pnginfo=info)).size == (64, 32)


def test_the_raw_profile_of_imagemagick_is_used() -> None:
    exif = exif_of(6)
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n", zip=True)
    assert load_image(encoded("PNG", pnginfo=info)).size == (32, 64)
    info.add_text("Raw profile type exif", "\nexif\n4\nno hex\n")
    assert load_image(encoded("PNG", pnginfo=info)).size == (32, 64)
