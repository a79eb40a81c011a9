from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlcore.errors import ImageError, ImageLimitError
from vlcore.media import heif
from vlcore.media.image import load_image
from vlcore.media.policy import ImageLimits

HEADER = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def encoded(size: tuple[int, int] = (64, 32), **options: Any) -> bytes:
    pytest.importorskip("pillow_heif")
    heif.register()
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(buffer, "HEIF", **options)
    return buffer.getvalue()


def test_a_heic_photo_is_read() -> None:
    loaded = load_image(encoded())
    expected = Image.linear_gradient("L").resize((64, 32)).convert("RGB")
    assert (loaded.mode, loaded.size) == ("RGB", (64, 32))
    assert np.abs(np.asarray(loaded, dtype=int) - np.asarray(expected, dtype=int)).max() < 20


def test_its_orientation_is_applied_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(encoded(exif=exif.tobytes())).size == (32, 64)


def test_limits_hold() -> None:
    with pytest.raises(ImageLimitError, match=r"64 x 32 = 2048 pixels.*max_pixels=2000"):
        load_image(encoded(), ImageLimits(max_pixels=2000))
    with pytest.raises(ImageError, match="not an image in one of PNG"):
        load_image(encoded(), ImageLimits(formats=("PNG",)))


@pytest.mark.parametrize("length", [20, 100, 300])
def test_a_truncated_file_is_an_error(length: int) -> None:
    with pytest.raises(ImageError):
        load_image(encoded()[:length])


def test_the_error_without_the_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    heif.register.cache_clear()
    try:
        with pytest.raises(ImageError, match=r"pip install 'vlcore\[heif\]'"):
            load_image(HEADER)
    finally:
        heif.register.cache_clear()
