"""A plugin in a separate process; test_broken_plugins has some that do what they should not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from vlcore.testing.isolation import (
    IsolatedRun,
    _copy_with_remote_code,
    import_isolated,
    run_isolated,
)
from vlcore.testing.report import CheckFailedError


def test_a_process_that_ends_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    (tmp_path / "model").mkdir()
    (tmp_path / "work").mkdir()
    isolated_run = run_isolated(
        "vl-plugin-some", "vl_plugin_some", tmp_path / "model", tmp_path / "work"
    )
    assert isolated_run == IsolatedRun((), "its process ended with 1: ")


def test_a_module_imported_apart() -> None:
    imported = import_isolated("this")
    assert imported.printed.startswith("The Zen of Python")
    assert "this" in imported.names
    assert "torch" not in imported.names


def test_a_module_that_cannot_be_imported_apart() -> None:
    with pytest.raises(CheckFailedError, match="No module named 'vl_plugin_none'"):
        import_isolated("vl_plugin_none")


def test_the_copy_of_a_checkpoint_offers_remote_code_and_leaves_the_original(
    tmp_path: Path,
) -> None:
    original = tmp_path / "original"
    (original / "tower").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tower/config.json"):
        (original / name).write_text('{"x": 1}')
    (original / "linked").symlink_to(original / "tower")
    _copy_with_remote_code(original, tmp_path / "copy")
    copied = sorted(path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*"))
    assert [path.as_posix() for path in copied] == [
        "config.json",
        "linked",
        "model.safetensors",
        "tower",
        "tower/config.json",
        "vlcore_planted_code.py",
    ]
    assert '"auto_map"' in (tmp_path / "copy" / "config.json").read_text()
    assert (original / "config.json").read_text() == '{"x": 1}'
