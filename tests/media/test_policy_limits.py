from __future__ import annotations

import asyncio
import io
from collections.abc import Coroutine
from typing import Any

import pytest
from grey_model import FakeModel, image
from PIL import Image

from vlcore.errors import ImageError, ImageLimitError, OptionError
from vlcore.media.image import load_image
from vlcore.media.policy import ImageAccess, ImageLimits
from vlcore.vision.encoder import ImageEncoder


def encoded(kind: str, size: tuple[int, int] = (2, 2)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("formats", [(), "PNG", ("PNG", "EPS")])
def test_formats_are_some_of_the_known_ones(formats: Any) -> None:
    with pytest.raises(OptionError, match="formats must be some of"):
        ImageLimits(formats=formats)


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(OptionError, match="timeout_s"):
        ImageLimits(timeout_s=float("nan"))


def test_only_wanted_formats_are_opened() -> None:
    limits = ImageLimits(formats=("PNG",))
    assert load_image(encoded("PNG"), limits).size == (2, 2)
    with pytest.raises(ImageError, match=r"not an image in one of PNG$"):
        load_image(encoded("GIF"), limits)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "ICNS", "TGA", "PCX", "PDF", "DDS"])
def test_other_formats_are_never_opened(kind: str) -> None:
    with pytest.raises(ImageError, match="is not an image in one of"):
        load_image(encoded(kind, (16, 16)))


def failing(work: str, limits: ImageLimits, sources: list[Any], **options: Any) -> None:
    async def body() -> None:
        async with ImageEncoder(FakeModel(), image_limits=limits, **options) as encoder:
            ask: Coroutine[Any, Any, Any] = getattr(encoder, work)(sources)
            await ask

    asyncio.run(body())


@pytest.mark.parametrize("work", ["encode", "prepare", "load"])
def test_a_request_has_limits(work: str) -> None:
    with pytest.raises(ImageLimitError, match="has 3 images, more than max_images=2"):
        failing(work, ImageLimits(max_images=2), [image(1)] * 3)
    images = [encoded("PNG", (2, 2)), encoded("BMP", (2, 3))]
    # Four bytes for each pixel, and a pointer for each row.
    failing(work, ImageLimits(max_decoded_bytes=80), images)
    with pytest.raises(ImageLimitError, match="max_decoded_bytes=79"):
        failing(work, ImageLimits(max_decoded_bytes=79), images)


@pytest.mark.parametrize("work", ["encode", "prepare", "load"])
def test_an_encoder_reads_only_what_is_allowed(work: str) -> None:
    for source, message in (("/etc/passwd", "directory"), ("http://127.0.0.1:9/", "not allowed")):
        with pytest.raises(ImageError, match=message):
            failing(work, ImageLimits(), [source], image_access=ImageAccess())
