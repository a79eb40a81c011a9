from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from vlcore.cluster.offline.sources import (
    LOCAL,
    SourceFile,
    find_sources,
    open_filesystem,
    read_source,
)
from vlcore.errors import ImageError, ImageLimitError, OptionError
from vlcore.media.policy import DEFAULT_LIMITS


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    filesystem = fsspec.filesystem("memory")
    for name in ("b.png", "a b.JPG", "more/c%20.webp", "notes.txt"):
        filesystem.pipe(f"/sources/{name}", name.encode())
    yield filesystem
    filesystem.rm("/sources", recursive=True)


def names(*arguments: str) -> list[str]:
    return [file.name for file in find_sources(arguments).files]


def test_files_of_fsspec_are_found_by_directory_pattern_and_name(memory: MemoryFileSystem) -> None:
    del memory
    root = "memory://sources"
    everything = [f"{root}/a b.JPG", f"{root}/b.png", f"{root}/more/c%20.webp"]
    assert names(root) == names(f"{root}/") == everything
    assert names(f"{root}/*.png", f"{root}/b.png") == [f"{root}/b.png"]
    assert names(f"{root}/**/*.webp") == [f"{root}/more/c%20.webp"]
    assert names(f"{root}/[an]*") == [f"{root}/a b.JPG", f"{root}/notes.txt"]
    assert names(f"{root}/absent.png") == [f"{root}/absent.png"]
    sources = find_sources([root, "here.png", f"{root}/notes.txt"])
    assert sources.files[-2] == SourceFile("here.png", str(Path("here.png").absolute()), LOCAL)
    data = [
        read_source(file.path, sources.filesystems[file.filesystem])
        for file in sources.files
        if file.filesystem != LOCAL
    ]
    assert data == [b"a b.JPG", b"b.png", b"more/c%20.webp", b"notes.txt"]


def test_files_of_pyarrow_are_found_by_directory_pattern_and_name(tmp_path: Path) -> None:
    for name in ("b.png", "a b.JPG", "more/c%20.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    root = f"file://{tmp_path}"
    assert isinstance(open_filesystem(root)[0], LocalFileSystem)
    assert names(root) == [f"{root}/a b.JPG", f"{root}/b.png", f"{root}/more/c%20.webp"]
    assert names(f"{root}/a b.JPG", f"{root}/*/*") == [f"{root}/a b.JPG", f"{root}/more/c%20.webp"]
    sources = find_sources([root, f"{root}/a b.JPG"])
    read = [read_source(file.path, sources.filesystems[0]) for file in sources.files]
    assert read == [b"a b.JPG", b"b.png", b"more/c%20.webp"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nothing://a", "nothing://a cannot be opened: Protocol not known"),
        ("az://key:secret@a", "az://a cannot be opened: .*adlfs"),
        ("memory://empty", "no images found in memory://empty"),
    ],
)
def test_what_cannot_be_listed_is_an_error(uri: str, message: str) -> None:
    fsspec.filesystem("memory").makedirs("/empty", exist_ok=True)
    with pytest.raises(OptionError, match=message) as failure:
        find_sources([uri])
    assert "secret" not in str(failure.value)


class Unreliable(MemoryFileSystem):  # type: ignore[misc]
    protocol = "unreliable"
    num_failures = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if Unreliable.num_failures:
            Unreliable.num_failures -= 1
            raise ConnectionError("slow down")
        return super()._open(path, mode, **options)


def test_reading_is_tried_again_and_then_an_error_of_the_image(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    del memory
    filesystem = PyFileSystem(FSSpecHandler(Unreliable()))
    monkeypatch.setattr(Unreliable, "num_failures", 2)
    assert read_source("/sources/b.png", filesystem) == b"b.png"
    monkeypatch.setattr(Unreliable, "num_failures", 3)
    with pytest.raises(ImageError, match=r"'/sources/b.png' cannot be read: .*slow down"):
        read_source("/sources/b.png", filesystem)
    with pytest.raises(ImageError, match="there is no file"):
        read_source("/sources/absent.png", filesystem)


def test_a_file_that_is_too_large_is_not_read_whole(memory: MemoryFileSystem) -> None:
    memory.pipe("/sources/large.png", bytes(DEFAULT_LIMITS.max_bytes + 1))
    filesystem, path = open_filesystem("memory://sources/large.png")
    with pytest.raises(ImageLimitError, match="larger than max_bytes"):
        read_source(path, filesystem)
