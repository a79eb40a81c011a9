from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlcore.errors import OptionError
from vlcore.media.image_files import find_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "more/c.webp", "more/d.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def found(folder: Path, *sources: str) -> list[str]:
    return [
        os.path.relpath(name, folder) for name in find_images([str(folder / s) for s in sources])
    ]


def test_a_directory_is_searched_for_the_suffixes_of_images(folder: Path) -> None:
    assert found(folder, "") == ["a.JPG", "b.png", "more/c.webp", "more/d.png"]


def test_a_pattern_finds_what_a_shell_would(folder: Path) -> None:
    assert found(folder, "*.png") == ["b.png"]
    assert found(folder, "**/*.png") == ["b.png", "more/d.png"]
    assert found(folder, "[ab].*") == ["a.JPG", "b.png"]
    assert found(folder, "*.txt") == ["notes.txt"]  # as if it were named
    assert found(folder, "mor?") == ["more/c.webp", "more/d.png"]


def test_a_pattern_that_matches_nothing_is_a_name(folder: Path) -> None:
    assert found(folder, "b.png", "*.gif") == ["b.png", "*.gif"]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(folder: Path) -> None:
    (folder / "[b].png").touch()
    assert found(folder, "[b].png") == ["[b].png"]


def test_urls_are_no_patterns() -> None:
    urls = ["https://example.org/a.png?size=*", "data:image/png;base64,[]"]
    assert find_images(urls) == urls


def test_an_image_is_listed_once(folder: Path) -> None:
    assert found(folder, "b.png", "*.png", "b.png") == ["b.png"]


def test_a_directory_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no images found in"):
        find_images([str(tmp_path)])
