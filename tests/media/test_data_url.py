from __future__ import annotations

import base64
import tracemalloc

import pytest

from vlcore.errors import ImageError, ImageLimitError
from vlcore.media.data_url import read_data_url
from vlcore.media.image import load_image
from vlcore.media.policy import ImageAccess, ImageLimits

CONTENT = bytes(range(256)) + b"\xff\xfb\xff?>"
TEXT = base64.b64encode(CONTENT).decode()
LINES = base64.encodebytes(CONTENT).decode()


def read(url: str, max_bytes: int = 10**6) -> bytes:
    return read_data_url(url, "'it'", max_bytes)


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{TEXT}",
        f"data:image/png;base64,{LINES}",
        "data:image/png;base64," + LINES.replace("\n", "\r\n"),
        "data:image/png;base64," + LINES.replace("\n", "%0D%0A"),
        "data:image/png;base64, " + " ".join(TEXT),
        "data:image/png;base64," + TEXT.rstrip("="),
        "data:image/png;base64," + base64.urlsafe_b64encode(CONTENT).decode(),
        "data:image/png;base64," + base64.urlsafe_b64encode(CONTENT).decode().rstrip("="),
        "data:image/png;base64," + TEXT.replace("+", "%2B").replace("/", "%2f").replace("=", "%3d"),
        f"data:image/png;BASE64,{TEXT}",
        f"DATA:image/png; base64,{TEXT}",
        f"data:image/png;charset=utf-8;base64,{TEXT}",
        f"data:image/png;base64;charset=utf-8,{TEXT}",
        f"data:;base64,{TEXT}#fragment",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in CONTENT),
    ],
)
def test_data_urls_are_read_as_by_browsers(url: str) -> None:
    assert read(url) == CONTENT


def test_percent_escapes_are_decoded_and_others_stay() -> None:
    assert read("data:,a%20b%zz%4%%41%e4ü%") == b"a b%zz%4%A\xe4\xc3\xbc%"


@pytest.mark.parametrize("length", [2**20 - 2, 2**20 - 1, 2**20, 2**20 + 1])
def test_an_escape_may_be_anywhere(length: int) -> None:
    assert (
        read("data:," + "a" * length + "%41%42") == b"a" * length + b"AB"
        if length < 10**6
        else (read("data:," + "a" * length + "%41%42", 2 * length) == b"a" * length + b"AB")
    )


@pytest.mark.parametrize("body", ["@@@@", "iVBORw0KGgo=x", "abcde", "ab=c", "ä"])
def test_damaged_base64_is_an_error(body: str) -> None:
    with pytest.raises(ImageError, match="damaged base64"):
        read(f"data:image/png;base64,{body}")


def test_the_limit_of_bytes_is_that_of_the_content() -> None:
    for url in (f"data:;base64,{LINES}", "data:," + "%41" * len(CONTENT)):
        assert len(read(url, len(CONTENT))) == len(CONTENT)
        with pytest.raises(ImageLimitError, match=f"max_bytes={len(CONTENT) - 1} of"):
            read(url, len(CONTENT) - 1)


@pytest.mark.parametrize(
    "url",
    ["data:," + "%41" * 10**6, "data:," + "%41A" * 10**6, "data:;base64," + "%41" * 10**6],
    ids=["escapes", "mixed", "base64"],
)
def test_escapes_take_little_memory(url: str) -> None:
    read("data:,%41")
    tracemalloc.start()
    try:
        read(url, 3 * 10**6)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * len(url) + 2**24


def test_a_url_that_is_too_long_is_refused_before_it_is_decoded() -> None:
    url = "data:," + "%41" * 10**6
    tracemalloc.start()
    try:
        with pytest.raises(ImageLimitError):
            read(url, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(url)


@pytest.mark.parametrize(
    ("beginning", "media_type"),
    [("/9j/4AAQ", "image/jpeg"), ("iVBORw0KGgo", "image/png"), ("R0lGODlh", "image/gif")],
)
@pytest.mark.parametrize("access", [ImageAccess(), ImageAccess(trusts_caller=True)])
def test_base64_without_a_prefix_is_reported_with_what_to_write(
    beginning: str, media_type: str, access: ImageAccess
) -> None:
    with pytest.raises(ImageError, match=f"write data:{media_type};base64, before it"):
        load_image(beginning + "A" * 1000, ImageLimits(), access)
