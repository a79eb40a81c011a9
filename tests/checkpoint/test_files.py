from __future__ import annotations

from pathlib import Path

import pytest

from vlcore import Checkpoint, CheckpointFiles, ConfigError
from vlcore.checkpoint.files import path_inside


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "vision").mkdir(parents=True)
    (directory / "config.json").write_text('{"name": "model"}')
    (directory / "vision" / "config.json").write_text('{"name": "vision"}')
    (directory / "tokenizer.model").write_bytes(b"\x00")
    (directory / "model.safetensors").write_bytes(b"\x00")
    (tmp_path / "config.json").write_text('{"name": "outside"}')
    return directory


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("config.json", "model"),
        ("./config.json", "model"),
        (".//config.json", "model"),
        ("vision/../config.json", "model"),
        ("absent/../config.json", "model"),
        ("vision/config.json", "vision"),
        ("./vision//config.json", "vision"),
        (r"vision\config.json", "vision"),
        (r".\vision\config.json", "vision"),
    ],
)
def test_a_file_of_the_checkpoint_is_read(directory: Path, path: str, name: str) -> None:
    files = CheckpointFiles(directory)
    assert path in files
    assert files.read_json(path) == {"name": name}


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "vision",
        "absent.json",
        "../config.json",
        r"..\config.json",
        "vision/../../config.json",
        "../model/config.json",
        "/config.json",
        r"\config.json",
        "C:/config.json",
        "C:config.json",
        r"\\server\share\config.json",
        "x" * 5000 + ".json",
        "a\0b.json",
        "model.safetensors",
    ],
)
def test_a_path_that_is_not_a_metadata_file_is_absent(directory: Path, path: str) -> None:
    files = CheckpointFiles(directory)
    assert path not in files
    assert files.read_json(path) is None


def test_an_absolute_path_is_absent(directory: Path) -> None:
    assert CheckpointFiles(directory).read_json(str(directory / "config.json")) is None


def test_files_that_are_not_json_are_found(directory: Path) -> None:
    assert "tokenizer.model" in CheckpointFiles(directory)


def test_links_out_of_the_directory_are_followed_as_in_a_cache_of_the_hub(
    tmp_path: Path, directory: Path
) -> None:
    (directory / "linked.json").symlink_to(tmp_path / "config.json")
    assert CheckpointFiles(directory).read_json("linked.json") == {"name": "outside"}


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"1", b""])
def test_a_file_that_is_not_a_json_object_is_an_error(directory: Path, content: bytes) -> None:
    (directory / "vision" / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"vision/config\.json"):
        CheckpointFiles(directory).read_json("vision/config.json")


def test_without_a_checkpoint_there_are_no_files() -> None:
    files = CheckpointFiles()
    assert "config.json" not in files
    assert files.read_json("config.json") is None


def test_a_checkpoint_has_its_files(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.files.read_json("vision/config.json") == {"name": "vision"}
    assert checkpoint.read_json(r"vision\config.json") == {"name": "vision"}


def test_the_directory_itself_is_inside(tmp_path: Path) -> None:
    assert path_inside(tmp_path, ".") == path_inside(tmp_path, "a/..") == tmp_path
