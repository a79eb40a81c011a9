from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vlcore.errors import ViewError
from vlcore.language.text_view.manifest import MANIFEST, FileRecord, ViewManifest


@pytest.fixture
def view(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_text("linked weights")
    view = tmp_path / "view"
    view.mkdir()
    (view / "config.json").write_text("{}")
    (view / "copied.safetensors").write_text("weights")
    (view / "linked.safetensors").symlink_to(tmp_path / "weights")
    files = {path.name: FileRecord.from_file(path) for path in view.iterdir()}
    ViewManifest("key", "some/model", "a note", "2026-01-01", files).write(view)
    return view


def check(view: Path) -> None:
    manifest = ViewManifest.read(view)
    assert manifest is not None
    manifest.check(view, remedy="remove it")


def test_a_manifest_is_read_as_it_was_written(view: Path) -> None:
    manifest = ViewManifest.read(view)
    assert manifest is not None
    assert (manifest.key, manifest.model, manifest.note) == ("key", "some/model", "a note")
    assert set(manifest.files) == {"config.json", "copied.safetensors", "linked.safetensors"}
    assert manifest.files["linked.safetensors"].link == str(view.parent / "weights")
    check(view)


def test_a_directory_without_a_manifest_is_not_a_view(tmp_path: Path) -> None:
    assert ViewManifest.read(tmp_path) is None


def rewrite(name: str, text: str, *, keep_time: bool = False) -> Callable[[Path], None]:
    def change(view: Path) -> None:
        path = view / name
        before = path.stat()
        path.write_text(text)
        if keep_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        else:
            os.utime(path, ns=(0, 0))

    return change


def replace_link(view: Path) -> None:
    (view / "linked.safetensors").unlink()
    (view / "linked.safetensors").symlink_to(view / "config.json")


def link_a_file(view: Path) -> None:
    (view / "config.json").unlink()
    (view / "config.json").symlink_to(view.parent / "weights")


def copy_a_link(view: Path) -> None:
    content = (view / "linked.safetensors").read_text()
    (view / "linked.safetensors").unlink()
    (view / "linked.safetensors").write_text(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewrite("config.json", "[]", keep_time=True), r"config\.json has other content"),
        (rewrite("copied.safetensors", "WEIGHTS"), r"copied\.safetensors has other content"),
        (rewrite("copied.safetensors", "weigh"), r"copied\.safetensors has 5 bytes instead of 7"),
        (lambda view: (view / "config.json").unlink(), r"config\.json is missing"),
        (lambda view: (view / "linked.safetensors").unlink(), r"linked\.safetensors is missing"),
        (lambda view: (view.parent / "weights").unlink(), "weights, which does not exist"),
        (rewrite("../weights", "linked WEIGHTS"), "weights, which has changed since"),
        (replace_link, r"linked\.safetensors is not the link that it was"),
        (copy_a_link, r"linked\.safetensors is not the link that it was"),
        (link_a_file, r"config\.json has become a link"),
        (
            lambda view: (view / "model.safetensors").write_text("x"),
            r"model\.safetensors is not part of the view",
        ),
    ],
)
def test_a_change_is_reported(view: Path, change: Callable[[Path], None], message: str) -> None:
    change(view)
    with pytest.raises(ViewError, match=rf"of some/model is damaged: .*{message}.*`remove it`"):
        check(view)


def test_a_new_modification_time_alone_is_not_a_change(view: Path) -> None:
    os.utime(view / "config.json", ns=(0, 0))
    os.utime(view / "copied.safetensors", ns=(0, 0))
    check(view)


def test_weights_of_the_same_size_and_time_are_not_read(
    view: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        "vlcore.language.text_view.manifest._digest", lambda path: read.append(path.name)
    )
    with pytest.raises(ViewError):
        check(view)
    assert read == ["config.json"]


def test_hidden_files_are_ignored(view: Path) -> None:
    (view / ".nfs0001").write_text("of the file system")
    check(view)


@pytest.mark.parametrize("text", ["", "[]", '{"files": {}}', '{"files": {"a": {"size": 1}}}'])
def test_a_damaged_manifest_is_reported(view: Path, text: str) -> None:
    (view / MANIFEST).write_text(text)
    with pytest.raises(ViewError, match=f"{MANIFEST} is not a valid manifest"):
        ViewManifest.read(view)


def test_the_manifest_states_its_format(view: Path) -> None:
    value = json.loads((view / MANIFEST).read_text())
    assert value["format"] == 1
    assert value["vlcore"]
