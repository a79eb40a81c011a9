from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from vlcore.errors import ImageLimitError
from vlcore.media import png
from vlcore.media.image import load_image

LONG = "x" * 2**21


def encoded(info: PngImagePlugin.PngInfo | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(buffer, "PNG", pnginfo=info, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(kind: bytes, body: bytes, *, at_end: bool = False) -> bytes:
    data = encoded()
    position = len(data) - 12 if at_end else 33
    return data[:position] + chunk(kind, body) + data[position:]


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(LONG.encode())),
        (b"tEXt", b"Comment\0" + LONG.encode()),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG.encode())),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG.encode())),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LONG.encode())),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**21))),
        (b"iCCP", b"profile\0\0damaged"),
    ],
)
def test_large_text_and_profiles_are_left_out(kind: bytes, body: bytes, at_end: bool) -> None:
    image = load_image(with_chunk(kind, body, at_end=at_end))
    assert image.tobytes() == load_image(encoded()).tobytes()


@pytest.mark.parametrize("checksum", [b"", b"bad!"])
@pytest.mark.parametrize("kind", [b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"eXIf", b"tRNS", b"abCd"])
def test_damaged_chunks_that_pixels_do_not_depend_on_are_left_out(
    kind: bytes, checksum: bytes
) -> None:
    data = with_chunk(kind, b"1")
    damaged = data[:42] + checksum + data[42 + len(checksum) :]
    assert load_image(damaged).tobytes() == load_image(encoded()).tobytes()


@pytest.mark.parametrize(("mode", "clear"), [("L", 3), ("RGB", (3, 3, 3))])
def test_transparency_is_kept(mode: str, clear: int | tuple[int, ...]) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (2, 2), clear).save(buffer, "PNG", transparency=clear)
    image = load_image(buffer.getvalue(), background="#010203")
    assert image.getpixel((0, 0)) == (1, 2, 3)


def test_metadata_is_removed_without_being_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", LONG, zip=True)
    data = encoded(info, icc_profile=bytes(2**21))
    monkeypatch.setattr("vlcore.media.png.zlib.decompressobj", None)
    assert png.without_metadata(data, "it") == encoded()


def test_a_file_without_metadata_is_not_copied() -> None:
    data = encoded()
    assert png.without_metadata(data, "it") is data


def test_text_with_the_orientation_is_kept_once() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="1"/>', zip=True)
    Image.new("RGB", (4, 3)).save(buffer := io.BytesIO(), "PNG", pnginfo=info)
    assert load_image(buffer.getvalue()).size == (3, 4)


def test_very_many_chunks_are_refused() -> None:
    data = encoded()
    data = data[:33] + chunk(b"abCd", b"") * 70_000 + data[33:]
    with pytest.raises(ImageLimitError, match="more than 65536 chunks"):
        load_image(data)
