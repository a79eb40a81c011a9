from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from vlcore.cli.image_argument import read_image_argument

NAMES = [
    "plain.png",
    "two words.png",
    "it's.png",
    'say "hi".png',
    "#1 (a) & b; $c.png",
    "naïve 图.png",
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).touch()
    return tmp_path


def escaped(path: str) -> str:
    return "".join(f"\\{c}" if c in " '\"#()&;$" else c for c in path)


@pytest.mark.skipif(os.name != "posix", reason="the names are not allowed elsewhere")
@pytest.mark.parametrize("name", NAMES)
def test_a_path_may_be_plain_quoted_or_escaped(directory: Path, name: str) -> None:
    path = str(directory / name)
    for argument in (path, f"{path} ", shlex.quote(path), escaped(path)):
        assert read_image_argument(argument) == [path]


def test_double_quotes(directory: Path) -> None:
    path = str(directory / "two words.png")
    assert read_image_argument(f'"{path}"') == [path]


def test_several_files_are_several_images(directory: Path) -> None:
    first, second = (str(directory / name) for name in ("plain.png", "two words.png"))
    assert read_image_argument(f"{first} '{second}'") == [first, second]
    assert read_image_argument(f"{first} https://images.test/a.png") == [
        first,
        "https://images.test/a.png",
    ]


def test_a_file_whose_name_has_backslashes_or_quotes_is_taken_as_it_is(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "'a'.png" if os.name == "nt" else "a\\ b 'c'.png"
    (directory / name).touch()
    monkeypatch.chdir(directory)
    assert read_image_argument(name) == [name]


def test_the_home_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.setenv("USERPROFILE", str(directory))
    for argument in ("~/two words.png", "'~/two words.png'", r"~/two\ words.png"):
        if os.name == "nt" and "\\" in argument:
            continue
        assert read_image_argument(argument) == ["~/two words.png"]


@pytest.mark.parametrize(
    "url",
    [
        "file:///tmp/two%20words.png",
        "FILE:///tmp/a.png",
        "https://images.test/a.png?x='1'&y=\\2",
        "data:image/png;base64,AAAA",
    ],
)
def test_a_url_is_taken_as_it_is_and_may_be_quoted(url: str) -> None:
    assert read_image_argument(url) == [url]
    assert read_image_argument(f'"{url}"') == [url]


@pytest.mark.parametrize(
    "argument", ["no such file.png", "it's absent.png", "file:///tmp/two words.png", "'", "\\"]
)
def test_an_argument_that_names_no_files_is_one_path(argument: str) -> None:
    assert read_image_argument(argument) == [argument]


def test_on_windows_backslashes_separate_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcore.cli.image_argument._ESCAPE", "")
    assert read_image_argument(r'"C:\my photos\a.png"') == [r"C:\my photos\a.png"]
    assert read_image_argument(r"C:\photos\a.png") == [r"C:\photos\a.png"]
