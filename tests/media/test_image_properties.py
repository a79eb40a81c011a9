"""Whatever comes as a image ends in an image or in an error of vlcore.

``VLCORE_FUZZ_EXAMPLES`` sets how many are drawn for each property.
"""

from __future__ import annotations

import base64
import io
import os
import warnings

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlcore.errors import VlcoreError
from vlcore.media.image import load_image
from vlcore.media.policy import FORMATS, ImageAccess, ImageLimits

LIMITS = ImageLimits(max_pixels=100_000, max_bytes=100_000)
ACCESS = ImageAccess(urls=False)

few = settings(
    max_examples=int(os.environ.get("VLCORE_FUZZ_EXAMPLES", "200")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _files() -> list[bytes]:
    files = []
    for kind in FORMATS:
        for mode in ("RGB", "P", "1"):
            image = Image.radial_gradient("L").resize((13, 9)).convert(mode)
            buffer = io.BytesIO()
            try:
                image.save(buffer, kind)
            except (OSError, KeyError):
                continue  # the format does not support the mode, or is not installed
            files.append(buffer.getvalue())
    return files


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image file in which some ranges of bytes are replaced."""
    file = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(file)))
        end = draw(st.integers(start, min(len(file), start + 40)))
        file[start:end] = draw(st.binary(max_size=40))
    return bytes(file)


FILES = _files()
schemes = st.sampled_from(["data:", "data:image/png;base64,", "file://", "http://", "https://", ""])


def ends_well(source: bytes | str) -> None:
    with warnings.catch_warnings():  # Pillow warns of damage that it tolerates
        warnings.simplefilter("ignore")
        try:
            image = load_image(source, LIMITS, ACCESS)
        except VlcoreError:
            return
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= LIMITS.max_pixels


@few
@given(damaged())
def test_a_damaged_file_ends_well(file: bytes) -> None:
    ends_well(file)


@few
@given(st.binary(max_size=400))
def test_any_bytes_end_well(data: bytes) -> None:
    ends_well(data)


@few
@given(damaged(), st.text(max_size=20))
def test_a_data_url_ends_well(file: bytes, parameter: str) -> None:
    ends_well(f"data:image/{parameter};base64,{base64.b64encode(file).decode()}")


@few
@given(schemes, st.text(max_size=60))
def test_any_text_ends_well(scheme: str, text: str) -> None:
    ends_well(scheme + text)
