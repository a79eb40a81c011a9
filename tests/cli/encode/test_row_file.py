from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlcore.cli.encode.row_file import RowFile
from vlcore.errors import OptionError


def test_what_was_saved_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    file = RowFile(path, "model", 3)
    rows = torch.arange(6.0).reshape(2, 3)
    for name in ("a", "b"):
        file.put(name, f"key of {name}", rows)  # one tensor twice
    file.save()
    again = RowFile(path, "model", 3)
    assert len(again) == 2
    assert again.has("a", "key of a")
    assert not again.has("a", "another key")
    assert not again.has("c", "key of a")
    assert torch.equal(again._rows["b"][1], rows)
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.safetensors"]


def test_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    file = RowFile(path, "model", 3)
    file.put("a", "key", torch.zeros(2, 3))
    file.save()
    with pytest.raises(OptionError, match=r"width \[3\], and those of this model have 6"):
        RowFile(path, "model", 6)


def test_it_is_saved_whenever_it_has_doubled(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.safetensors", "model", 4)
    saved_at = []
    for number in range(300):
        file.put(str(number), "key", torch.zeros(1, 1))
        if file.is_due:
            file.save()
            saved_at.append(len(file))
    assert saved_at == [64, 128, 256]


def test_a_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.safetensors", "model", 4)
    file.path = tmp_path / "gone" / "rows.safetensors"
    with pytest.raises(OptionError, match="cannot be written"):
        file.save()
