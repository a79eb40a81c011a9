from __future__ import annotations

import base64
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from vlcore.errors import ImageDownloadError, ImageError, ImageLimitError, OptionError
from vlcore.media.image import check_image, decode_image, load_image
from vlcore.media.policy import DecodedBudget, ImageLimits
from vlcore.media.source import describe

ORIENTATION = 0x0112
TURN_RIGHT = 6
"""The EXIF orientation of an image that must be turned 90 degrees clockwise."""


def drawing() -> Image.Image:
    image = Image.new("RGB", (4, 3), (10, 20, 30))
    image.putpixel((0, 0), (200, 100, 50))
    return image


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


PNG = encoded(drawing())


def assert_is_drawing(image: Image.Image) -> None:
    assert image.mode == "RGB"
    assert image.size == (4, 3)
    assert image.tobytes() == drawing().tobytes()


def png_header(width: int, height: int) -> bytes:
    """An image without pixels: decoding would fail, reading the size does not."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + png_chunk(b"IDAT", b"")
        + png_chunk(b"IEND", b"")
    )


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


# -- sources


def test_a_path_as_text_and_as_path_is_read(tmp_path: Path) -> None:
    file = tmp_path / "image one.png"
    file.write_bytes(PNG)
    assert_is_drawing(load_image(str(file)))
    assert_is_drawing(load_image(file))


def test_a_tilde_stands_for_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "image.png").write_bytes(PNG)
    assert_is_drawing(load_image("~/image.png"))
    assert_is_drawing(load_image(Path("~/image.png")))


def test_a_tilde_of_an_unknown_user_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="no_such_user"):
        load_image("~no_such_user/image.png")


def test_a_file_url_is_read_with_its_escapes(tmp_path: Path) -> None:
    file = tmp_path / "ein Bild ü.png"
    file.write_bytes(PNG)
    assert "%20" in file.as_uri()
    assert_is_drawing(load_image(file.as_uri()))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_bytes_of_a_file_are_read(kind: type[Any]) -> None:
    assert_is_drawing(load_image(kind(PNG)))


def test_data_urls_are_read_in_both_encodings() -> None:
    assert_is_drawing(load_image("data:image/png;base64," + base64.b64encode(PNG).decode()))
    assert_is_drawing(load_image("data:image/png," + quote(PNG)))
    assert_is_drawing(load_image("DATA:;base64," + quote(base64.b64encode(PNG))))


def test_a_pil_image_is_copied() -> None:
    original = drawing()
    loaded = load_image(original)
    assert_is_drawing(loaded)
    loaded.putpixel((1, 1), (0, 0, 0))
    assert original.tobytes() == drawing().tobytes()


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_every_common_format_is_read(file_format: str) -> None:
    grey = Image.new("RGB", (16, 8), (128, 128, 128))
    loaded = load_image(encoded(grey, file_format))
    assert (loaded.mode, loaded.size) == ("RGB", (16, 8))
    assert np.abs(np.asarray(loaded).astype(int) - 128).max() <= 2


def test_a_photo_followed_by_a_second_image_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "MPO"
    red, green, blue = load_image(data).getpixel((0, 0))  # type: ignore[misc]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("source", [None, 5, ["a.png"], {"url": "a.png"}])
def test_another_type_is_named(source: Any) -> None:
    with pytest.raises(ImageError, match=f"not {type(source).__name__}"):
        load_image(source)


# -- over the network


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        route, _, rest = self.path[1:].partition("?")[0].partition("/")
        if route == "image":
            self._answer(200, PNG)
        elif route == "redirect":
            steps = int(rest)
            target = f"/redirect/{steps - 1}" if steps > 1 else "/image"
            self._answer(302, b"", Location=target)
        elif route == "to_file":
            self._answer(302, b"", Location="file:///etc/hostname")
        elif route == "drip":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the client has disconnected
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
        elif route == "page":
            self._answer(200, b"<html>not an image</html>")
        else:
            self._answer(404, b"nothing here")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *values: Any) -> None:
        pass


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def server(served: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return served


def test_an_http_url_is_fetched(server: str) -> None:
    assert_is_drawing(load_image(f"{server}/image"))
    assert_is_drawing(load_image(f"HTTP{server[4:]}/image?size=small#top"))


def test_redirects_are_followed_up_to_the_limit(server: str) -> None:
    assert_is_drawing(load_image(f"{server}/redirect/2", ImageLimits(max_redirects=2)))
    with pytest.raises(ImageError, match=r"redirect/3.*TooManyRedirects"):
        load_image(f"{server}/redirect/3", ImageLimits(max_redirects=2))
    with pytest.raises(ImageError, match="TooManyRedirects"):
        load_image(f"{server}/redirect/1", ImageLimits(max_redirects=0))


def test_a_redirect_to_a_file_is_refused(server: str) -> None:
    with pytest.raises(ImageError, match="to_file"):
        load_image(f"{server}/to_file")


def test_a_missing_page_gives_its_status(server: str) -> None:
    with pytest.raises(ImageError, match=r"absent.png.*404"):
        load_image(f"{server}/absent.png")


def test_a_page_that_is_not_an_image_is_named(server: str) -> None:
    with pytest.raises(ImageError, match=r"/page.*is not an image"):
        load_image(f"{server}/page")


def test_a_download_stops_at_the_limit(server: str) -> None:
    with pytest.raises(ImageLimitError, match=f"/image.*max_bytes={len(PNG) - 1}"):
        load_image(f"{server}/image", ImageLimits(max_bytes=len(PNG) - 1))
    assert_is_drawing(load_image(f"{server}/image", ImageLimits(max_bytes=len(PNG))))


def test_a_download_that_drips_stops_at_the_time_limit(server: str) -> None:
    with pytest.raises(ImageDownloadError, match=r"took longer than timeout_s=0\.1 of vlcore"):
        load_image(f"{server}/drip", ImageLimits(timeout_s=0.1))


def test_a_closed_port_is_an_image_error(server: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ImageError, match=f"127.0.0.1:{port}.*could not be fetched"):
            load_image(f"http://127.0.0.1:{port}/image.png")


@pytest.mark.parametrize("url", ["http://", "http://[::1", "https://a b/c.png"])
def test_a_url_that_is_none_is_an_image_error(url: str) -> None:
    with pytest.raises(ImageError, match="could not be fetched"):
        load_image(url)


# -- damage


def test_a_missing_file_is_named_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=r"no file 'absent\.png' \(working directory") as caught:
        load_image("absent.png")
    assert str(tmp_path) in str(caught.value)


def test_a_directory_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(tmp_path)


def test_a_name_with_a_null_byte_cannot_be_read() -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("a\0b.png")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.png"
    file.touch()
    for source in (file, b"", "data:image/png;base64,", "data:,"):
        with pytest.raises(ImageError, match="is empty"):
            load_image(source)


def test_text_is_not_an_image(tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("dear diary")
    with pytest.raises(ImageError, match=r"notes\.png.*10 bytes.*not an image.*JPEG"):
        load_image(file)


def test_a_format_that_is_not_listed_is_refused() -> None:
    with pytest.raises(ImageError, match="not an image"):
        load_image(encoded(drawing(), "TGA"))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_truncated_file_is_an_error(file_format: str) -> None:
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(values), file_format)
    load_image(data)
    with pytest.raises(ImageError, match="truncated"):
        load_image(data[: len(data) // 2])


def test_a_truncated_header_is_an_error() -> None:
    with pytest.raises(ImageError):
        load_image(PNG[:20])


def test_a_pil_image_of_a_truncated_file_is_an_error() -> None:
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(values))
    with (
        Image.open(io.BytesIO(data[: len(data) // 2])) as lazy,
        pytest.raises(ImageError, match=r"PIL image \(RGB, 64 x 64\).*truncated"),
    ):
        load_image(lazy)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"no pixels: it is {size[0]} x {size[1]}"):
        load_image(Image.new("RGB", size))


@pytest.mark.parametrize("body", ["@@@@", "iVBORw0KGgo=x", "abcde"])
def test_damaged_base64_is_an_error(body: str) -> None:
    with pytest.raises(ImageError, match="damaged base64"):
        load_image(f"data:image/png;base64,{body}")


def test_a_data_url_needs_its_comma() -> None:
    with pytest.raises(ImageError, match="is not a data URL"):
        load_image("data:image/png;base64")


def test_a_long_source_is_shortened_in_messages() -> None:
    with pytest.raises(ImageError) as caught:
        load_image("data:image/png;base64," + "@" * 10_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_described_by_their_number(kind: type[Any]) -> None:
    assert describe(kind(b"abc")) == "an image of 3 bytes"


# -- limits


def test_a_huge_header_is_refused_before_decoding() -> None:
    with pytest.raises(ImageLimitError, match=r"too large.*MAX_IMAGE_PIXELS"):
        load_image(png_header(100_000, 100_000))


def test_a_large_header_is_refused_before_decoding() -> None:
    with pytest.raises(
        ImageLimitError, match=r"5000 x 5000 = 25000000 pixels.*max_pixels=24000000"
    ):
        load_image(png_header(5000, 5000), ImageLimits(max_pixels=24_000_000))


def test_max_pixels_is_the_last_size_that_is_allowed() -> None:
    assert load_image(PNG, ImageLimits(max_pixels=12)).size == (4, 3)
    for source in (PNG, drawing()):
        with pytest.raises(ImageLimitError, match=r"4 x 3 = 12 pixels.*max_pixels=11"):
            load_image(source, ImageLimits(max_pixels=11))


def test_max_bytes_holds_for_every_source(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(PNG)
    tight = ImageLimits(max_bytes=len(PNG) - 1)
    base64_url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    for source in (PNG, file, str(file), file.as_uri(), base64_url):
        assert_is_drawing(load_image(source, ImageLimits(max_bytes=len(PNG) + 2)))
        with pytest.raises(ImageLimitError, match=f"max_bytes={tight.max_bytes} of"):
            load_image(source, tight)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_pixels", 0),
        ("max_bytes", -1),
        ("connect_timeout_s", 0),
        ("timeout_s", 0),
        ("max_redirects", -1),
    ],
)
def test_a_limit_out_of_range_is_named(name: str, value: int) -> None:
    with pytest.raises(OptionError, match=f"{name} must be .*{value}"):
        ImageLimits(**{name: value})  # type: ignore[arg-type]


# -- modes


def test_16_bit_grey_is_scaled() -> None:
    values = np.array([[65535, 32896, 257, 0, 129]], dtype=np.uint16)
    loaded = load_image(encoded(Image.fromarray(values)))
    assert loaded.mode == "RGB"
    assert np.asarray(loaded)[0].tolist() == [[v] * 3 for v in (255, 128, 1, 0, 1)]


def test_dark_16_bit_grey_stays_dark() -> None:
    values = np.array([[200, 0]], dtype=np.uint16)
    assert np.asarray(load_image(encoded(Image.fromarray(values))))[0, 0].tolist() == [1, 1, 1]


def test_32_bit_grey_is_scaled_where_it_exceeds_8_bits() -> None:
    small = Image.fromarray(np.array([[0, 128, 255]], dtype=np.int32))
    large = Image.fromarray(np.array([[0, 32896, 65535]], dtype=np.int32))
    assert small.mode == large.mode == "I"
    for image in (small, large):
        assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, 128, 255]


def test_floating_grey_is_read_in_either_range() -> None:
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    byte = Image.fromarray(np.array([[-3.0, 128.4, 300.0]], dtype=np.float32))
    assert np.asarray(load_image(unit))[0, :, 0].tolist() == [0, 128, 255]
    assert np.asarray(load_image(byte))[0, :, 0].tolist() == [0, 128, 255]


def test_floating_grey_without_a_number_is_black() -> None:
    image = Image.fromarray(np.array([[np.nan, 200.0, np.inf]], dtype=np.float32))
    assert np.asarray(load_image(image))[0, :, 0].tolist() == [0, 200, 255]


def test_cmyk_is_converted() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = load_image(encoded(image, "JPEG")).getpixel((4, 4))  # type: ignore[misc]
    assert red > 200
    assert max(green, blue) < 60


def test_a_palette_with_transparency_gives_its_colours_without_a_warning() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    data = encoded(image, transparency=b"\x00\x80")
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "P"
        assert isinstance(opened.info["transparency"], bytes)
    assert load_image(data).tobytes() == bytes([255, 0, 0, 0, 0, 255])


def test_transparency_is_dropped_and_not_blended() -> None:
    assert load_image(Image.new("RGBA", (1, 1), (9, 8, 7, 0))).getpixel((0, 0)) == (9, 8, 7)
    assert load_image(Image.new("LA", (1, 1), (50, 0))).getpixel((0, 0)) == (50, 50, 50)


def test_two_colours_become_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert load_image(encoded(image)).tobytes() == bytes([0, 0, 0, 255, 255, 255])


@pytest.mark.parametrize("mode", ["L", "HSV", "YCbCr", "LAB", "RGBX"])
def test_every_other_mode_is_converted(mode: str) -> None:
    assert load_image(Image.new(mode, (3, 2))).mode == "RGB"


# -- orientation and animation


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_RIGHT
    upright = load_image(encoded(drawing(), exif=exif))
    assert upright.size == (3, 4)
    assert upright.getpixel((2, 0)) == (200, 100, 50)
    assert ORIENTATION not in upright.getexif()


def test_the_exif_orientation_of_a_pil_image_is_applied() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_RIGHT
    with Image.open(io.BytesIO(encoded(drawing(), exif=exif))) as opened:
        upright = load_image(opened)
        assert opened.size == (4, 3)
    assert upright.size == (3, 4)
    assert upright.getpixel((2, 0)) == (200, 100, 50)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(file_format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3  # type: ignore[attr-defined]
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


# -- shrinking on load


def photo(**options: Any) -> bytes:
    """A smooth JPEG of 800 x 400 pixels: dark at the left, bright at the right."""
    return encoded(
        Image.linear_gradient("L").rotate(90).resize((800, 400)).convert("RGB"), "JPEG", **options
    )


@pytest.mark.parametrize(
    ("needed", "size"),
    [
        ((66, 33), (100, 50)),
        ((67, 33), (200, 100)),
        ((66, 34), (200, 100)),
        ((134, 67), (400, 200)),
        ((267, 133), (800, 400)),
        ((1, 1), (100, 50)),
        ((2000, 1000), (800, 400)),
        (None, (800, 400)),
    ],
)
def test_a_jpeg_keeps_half_more_than_what_is_needed(
    needed: tuple[int, int] | None, size: tuple[int, int]
) -> None:
    asked = []

    def needed_size(whole: tuple[int, int]) -> tuple[int, int] | None:
        asked.append(whole)
        return needed

    shrunk = decode_image(photo(), "a photo", needed_size=needed_size)
    assert asked == [(800, 400)]
    assert (shrunk.mode, shrunk.size) == ("RGB", size)
    whole = decode_image(photo(), "a photo").resize(size, Image.Resampling.BOX)
    difference = np.asarray(shrunk, dtype=int) - np.asarray(whole, dtype=int)
    assert np.abs(difference).max() <= 3


def test_a_rotated_jpeg_is_shrunk_by_the_size_of_its_upright_image() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_RIGHT
    asked = []

    def needed_size(whole: tuple[int, int]) -> tuple[int, int]:
        asked.append(whole)
        return 33, 133  # an eighth would do for the width, and a quarter for the height

    shrunk = decode_image(photo(exif=exif), "a photo", needed_size=needed_size)
    assert asked == [(400, 800)]
    assert shrunk.size == (100, 200)
    top, bottom = (np.asarray(shrunk)[row].mean() for row in (0, -1))
    whole = np.asarray(decode_image(photo(exif=exif), "a photo"))
    assert abs(top - whole[0].mean()) < 3
    assert abs(bottom - whole[-1].mean()) < 3
    assert abs(top - bottom) > 200


def test_other_formats_are_not_shrunk() -> None:
    image = decode_image(PNG, "a drawing", needed_size=lambda _: (1, 1))
    assert_is_drawing(image)


def test_a_grey_jpeg_and_one_in_four_inks_are_shrunk() -> None:
    for mode in ("L", "CMYK"):
        data = encoded(Image.new(mode, (800, 400)), "JPEG")
        image = decode_image(data, "a photo", needed_size=lambda _: (60, 30))
        assert (image.mode, image.size) == ("RGB", (100, 50))


def test_limits_hold_for_the_size_before_shrinking() -> None:
    with pytest.raises(ImageLimitError, match="800 x 400 = 320000 pixels"):
        decode_image(photo(), "a photo", ImageLimits(max_pixels=300_000), lambda _: (1, 1))


def test_a_truncated_jpeg_is_an_error_when_shrunk_too() -> None:
    with pytest.raises(ImageError, match="a photo is damaged or truncated"):
        decode_image(photo()[:-900], "a photo", needed_size=lambda _: (60, 30))


def test_who_cannot_say_what_is_needed_fails_by_its_own_error() -> None:
    def needed_size(_: tuple[int, int]) -> tuple[int, int]:
        raise OptionError("not the image's fault")

    with pytest.raises(OptionError, match="not the image's fault"):
        decode_image(photo(), "a photo", needed_size=needed_size)


def test_the_header_of_an_image_is_checked_as_when_it_is_decoded() -> None:
    limits = ImageLimits(max_pixels=10_000, max_decoded_bytes=150)
    budget = DecodedBudget(limits)
    check_image(encoded(drawing(), "JPEG"), "a", ImageLimits(), DecodedBudget(ImageLimits()))
    for _ in range(2):
        check_image(encoded(drawing()), "a", limits, budget)
    with pytest.raises(ImageLimitError, match="max_decoded_bytes"):
        check_image(encoded(drawing()), "c", limits, budget)
    with pytest.raises(ImageLimitError, match="max_pixels"):
        check_image(png_header(200, 200), "b", limits, DecodedBudget(limits))
    with pytest.raises(ImageError, match="is not an image"):
        check_image(b"text", "d", limits, DecodedBudget(limits))
    with pytest.raises(ImageError, match="is empty"):
        check_image(b"", "e", limits, DecodedBudget(limits))
