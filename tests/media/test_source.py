from __future__ import annotations

from pathlib import Path

import pytest

from vlcore.media.source import describe

LONG = "a" * 100


@pytest.mark.parametrize("source", [f"/{LONG}/broken.png", Path(LONG) / "broken.png"])
def test_a_long_path_keeps_its_file_name(source: str | Path) -> None:
    assert describe(source).endswith("/broken.png'")
    assert len(describe(source)) <= 82


@pytest.mark.parametrize(
    "source", [f"https://example.org/{LONG}.png", f"data:image/png;base64,{LONG}", f"/9j/{LONG}"]
)
def test_a_long_url_and_encoded_data_keep_their_beginning(source: str) -> None:
    assert describe(source) == repr(f"{source[:77]}...")
