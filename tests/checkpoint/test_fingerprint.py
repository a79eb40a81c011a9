from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from small_checkpoint import Writer, write_checkpoint
from weight_files import (
    LAYOUTS,
    single_safetensors,
)

from vlcore import Checkpoint


def fingerprint(directory: Path) -> str:
    return Checkpoint.open(directory).fingerprint


@pytest.mark.parametrize("write", LAYOUTS)
def test_the_fingerprint_is_stable_while_the_checkpoint_is_unchanged(
    tmp_path: Path, write: Writer
) -> None:
    before = fingerprint(write_checkpoint(tmp_path, write))
    (tmp_path / "README.md").write_text("words")
    assert fingerprint(tmp_path) == before
    assert fingerprint(tmp_path / ".." / tmp_path.name) == before


@pytest.mark.parametrize("write", LAYOUTS)
def test_the_fingerprint_changes_with_any_weight_file(tmp_path: Path, write: Writer) -> None:
    write_checkpoint(tmp_path, write)
    for file in sorted(path for path in tmp_path.iterdir() if path.suffix != ".json"):
        before = fingerprint(tmp_path)
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert fingerprint(tmp_path) != before


def test_the_fingerprint_changes_with_size_config_and_path(tmp_path: Path) -> None:
    seen = {fingerprint(write_checkpoint(tmp_path / "first"))}
    config = tmp_path / "first" / "config.json"
    config.write_text(config.read_text() + " ")
    seen.add(fingerprint(tmp_path / "first"))
    file = tmp_path / "first" / "model.safetensors"
    times = file.stat()
    single_safetensors(tmp_path / "first", {"a": torch.zeros(100)})
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen.add(fingerprint(tmp_path / "first"))
    (tmp_path / "first").rename(tmp_path / "second")
    seen.add(fingerprint(tmp_path / "second"))
    assert len(seen) == 4
