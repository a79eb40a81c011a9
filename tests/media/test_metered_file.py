from __future__ import annotations

import io

import pytest
from PIL import Image

from vlcore.errors import ImageLimitError, OptionError
from vlcore.media import metered_file
from vlcore.media.image import load_image
from vlcore.media.metered_file import MeteredFile
from vlcore.media.policy import ImageLimits


def encoded(file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, file_format)
    return buffer.getvalue()


class Clock:
    def __init__(self) -> None:
        self.now = 5.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("vlcore.media.metered_file.time.thread_time", clock)
    return clock


def test_a_file_is_read_until_the_time_is_over(clock: Clock) -> None:
    file = MeteredFile(b"abcdef", "it", 2.0)
    assert file.read(1) == b"a"
    clock.now += 2.0
    assert file.read(1) == b"b"
    clock.now += 0.1
    with pytest.raises(ImageLimitError, match=r"it takes longer .* decode_timeout_s=2 of"):
        file.read(1)


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_decoding_ends_when_the_time_is_over(file_format: str, clock: Clock) -> None:
    limits = ImageLimits(decode_timeout_s=30)
    data = encoded(file_format)
    assert load_image(data, limits).size == (64, 64)
    clock.step = 31
    with pytest.raises(ImageLimitError, match="decode_timeout_s=30"):
        load_image(data, limits)


def test_the_time_must_be_positive() -> None:
    with pytest.raises(OptionError, match="decode_timeout_s must be"):
        ImageLimits(decode_timeout_s=0)


def test_a_file_of_very_many_parts_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comment of a GIF takes several reads, and joining them takes quadratic time."""
    monkeypatch.setattr(metered_file, "MAX_READS", 1000)
    data = encoded("GIF")
    head = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    comments = b"\x21\xfe" + b"\x01x" * 5000 + b"\0"
    assert load_image(data).size == (64, 64)
    with pytest.raises(ImageLimitError, match="too many parts"):
        load_image(data[:head] + comments + data[head:])
