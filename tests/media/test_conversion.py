from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlcore.errors import ImageLimitError, OptionError
from vlcore.media import conversion
from vlcore.media.conversion import parse_background, stored_bytes, to_rgb
from vlcore.media.image import decode_image, load_image
from vlcore.media.policy import DecodedBudget, ImageLimits


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


# -- memory


def test_deep_grey_is_converted_in_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    levels = conversion._levels

    def spied(tile: Image.Image) -> Any:
        sizes.append(tile.width * tile.height)
        return levels(tile)

    monkeypatch.setattr(conversion, "_levels", spied)
    for size in ((2000, 1000), (2_000_000, 1), (1, 2_000_000)):
        image = Image.new("I;16", size, 257 * 7)
        assert to_rgb(image).getcolors() == [(2_000_000, (7, 7, 7))]
    assert max(sizes) <= 2**18
    assert sum(sizes) == 2 * 3 * 2_000_000


def test_tiles_have_one_scale() -> None:
    values = np.full((1, 600_000), 100, dtype=np.int32)
    values[0, -1] = 65535
    levels = np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0]
    assert (levels[0], levels[-1]) == (0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I", "F", "I;16"])
def test_the_memory_of_an_image_is_that_of_pillow(mode: str) -> None:
    """Pillow has a pointer of eight bytes for each row, and one, two or four bytes for a pixel."""
    pixel_bytes = {"1": 1, "L": 1, "P": 1, "I;16": 2}.get(mode, 4)
    assert stored_bytes(mode, (100, 3)) == 3 * (100 * pixel_bytes + 8)
    assert len(Image.new(mode, (104, 3)).tobytes()) <= stored_bytes(mode, (104, 3))


def test_copies_count_against_the_limit_of_memory() -> None:
    """A small file of a large grey image has its grey levels and its RGB pixels in memory."""
    data = encoded(Image.new("I;16", (800, 800)))
    needed = stored_bytes("RGB", (800, 800)) + stored_bytes("I;16", (800, 800))
    budget = DecodedBudget(ImageLimits(max_decoded_bytes=needed))
    assert decode_image(data, "it", budget=budget).size == (800, 800)
    budget = DecodedBudget(ImageLimits(max_decoded_bytes=needed - 1))
    with pytest.raises(ImageLimitError, match=f"max_decoded_bytes={needed - 1}"):
        decode_image(data, "it", budget=budget)


def test_row_pointers_count_against_the_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("1", (1, 100_000)))
    monkeypatch.setattr(Image.Image, "convert", None)
    budget = DecodedBudget(ImageLimits(max_decoded_bytes=2_000_000))
    with pytest.raises(ImageLimitError, match="takes 2100000 bytes"):
        decode_image(data, "it", budget=budget)


def test_the_memory_that_is_freed_counts_once() -> None:
    data = encoded(Image.new("L", (100, 100)))
    rgb, grey = stored_bytes("RGB", (100, 100)), stored_bytes("L", (100, 100))
    budget = DecodedBudget(ImageLimits(max_decoded_bytes=3 * rgb + grey))
    for _ in range(3):
        decode_image(data, "it", budget=budget)
    with pytest.raises(ImageLimitError):
        decode_image(data, "it", budget=budget)


def test_the_coefficients_of_a_progressive_jpeg_count() -> None:
    image = Image.new("RGB", (160, 160))
    rgb, coefficients = stored_bytes("RGB", (160, 160)), 2 * 3 * 160 * 160
    budget = DecodedBudget(ImageLimits(max_decoded_bytes=rgb + coefficients - 1))
    decode_image(encoded(image, "JPEG"), "it", budget=budget)
    budget = DecodedBudget(ImageLimits(max_decoded_bytes=rgb + coefficients - 1))
    with pytest.raises(ImageLimitError):
        decode_image(encoded(image, "JPEG", progressive=True), "it", budget=budget)


def test_an_rgb_image_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"))
    for method in ("copy", "convert", "crop", "transpose"):
        monkeypatch.setattr(Image.Image, method, None)
    assert load_image(data).getpixel((7, 7)) == (255, 0, 0)


# -- transparency


def transparent(mode: str) -> bytes:
    """A transparent pixel that stores black, an opaque red one, and one that is half opaque."""
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128)])
    if mode == "P":
        palette = Image.new("P", (3, 1))
        palette.putpalette([0, 0, 0, 255, 0, 0])
        palette.putdata([0, 1, 0])
        return encoded(palette, transparency=0)
    if mode == "RGB":
        return encoded(image.convert("RGB"), transparency=(0, 0, 0))
    return encoded(image.convert(mode))


def colors(image: Image.Image) -> list[Any]:
    return [image.getpixel((x, 0)) for x in range(3)]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_a_background_fills_transparent_pixels(mode: str) -> None:
    data = transparent(mode)
    dropped = colors(load_image(data))
    assert dropped[0] == dropped[2] == (0, 0, 0)
    blended = colors(load_image(data, background="white"))
    assert blended[0] == (255, 255, 255)
    assert blended[1] == dropped[1]
    assert blended[2] == ((127, 127, 127) if mode in ("RGBA", "LA") else (255, 255, 255))


def test_a_pil_image_has_the_background_too() -> None:
    image = Image.new("RGBA", (3, 1))
    assert colors(load_image(image, background="#102030")) == [(16, 32, 48)] * 3
    assert colors(load_image(image)) == [(0, 0, 0)] * 3


def test_an_opaque_image_is_the_same_on_any_background() -> None:
    data = encoded(Image.linear_gradient("L").convert("RGB"))
    assert load_image(data, background="white").tobytes() == load_image(data).tobytes()


@pytest.mark.parametrize("background", ["", "no colour", "#12", 7, (1, 2, 3)])
def test_another_background_is_refused(background: Any) -> None:
    with pytest.raises(OptionError, match="a background is a colour"):
        parse_background(background)


_PEAK = """
import sys
from vlcore.errors import ImageError
from vlcore.media.image import load_image
from vlcore.media.policy import ImageLimits

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))

small, large = (open(path, "rb").read() for path in sys.argv[1:])
load_image(small)
before = peak()
try:
    size = load_image(large, ImageLimits(max_decoded_bytes=512 * 2**20)).size
except ImageError as error:
    size = error
print(peak() - before, size)
"""
"""Prints by how many bytes an image raises the peak of memory, and the image's size or error."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize(
    ("mode", "size", "outcome"),
    [
        ("I;16", (8000, 8000), "(8000, 8000)"),
        ("L", (8000, 8000), "(8000, 8000)"),
        ("1", (1, 64_000_000), "max_decoded_bytes"),
    ],
)
def test_a_large_image_takes_no_more_memory_than_the_limit(
    mode: str, size: tuple[int, int], outcome: str, tmp_path: Path
) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("I;16", (8, 8)).save(small)
    Image.new(mode, size).save(large)
    assert large.stat().st_size < 300_000
    finished = subprocess.run(
        [sys.executable, "-c", _PEAK, str(small), str(large)],
        capture_output=True,
        text=True,
        check=True,
    )
    num_bytes, _, found = finished.stdout.partition(" ")
    assert outcome in found
    assert int(num_bytes) < 512 * 2**20
