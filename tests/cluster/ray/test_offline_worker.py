from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from checkpoints import write_llava
from PIL import Image
from pyarrow.fs import LocalFileSystem
from safetensors.torch import load_file

from vlcore.cluster.offline.settings import EncoderSettings
from vlcore.cluster.offline.shards import ShardDirectory
from vlcore.cluster.offline.sources import LOCAL
from vlcore.cluster.offline.worker import GroupEncoder
from vlcore.errors import ImageError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("worker") / "checkpoint")


@pytest.fixture
def encoder(checkpoint: Path, tmp_path: Path) -> GroupEncoder:
    directory = ShardDirectory(LocalFileSystem(), str(tmp_path / "out"), "safetensors", "model")
    directory.create()
    settings = EncoderSettings(str(checkpoint), device="cpu", dtype="float32")
    return GroupEncoder(settings, directory, [], torch.get_num_threads())


def image(path: Path, colour: str, *known_keys: str) -> dict[str, Any]:
    Image.new("RGB", (40, 30), colour).save(path)
    row = {"name": path.name, "path": str(path), "filesystem": LOCAL}
    return row | {"known_keys": list(known_keys)}


def outcomes(encoder: GroupEncoder, *group: dict[str, Any]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = encoder(pyarrow.Table.from_pylist(list(group))).to_pylist()
    return rows


def test_a_group_is_one_shard_of_what_is_not_known(encoder: GroupEncoder, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = {"name": "bad", "path": str(tmp_path / "bad.png"), "filesystem": LOCAL, "known_keys": []}
    one, same = image(tmp_path / "a.png", "red"), image(tmp_path / "b.png", "red")
    first, second, third = outcomes(encoder, one, bad, same)
    assert first["shard"] == third["shard"] != ""
    assert first["key"] == third["key"]
    assert "is not an image" in second["error"]
    rows = load_file(tmp_path / "out" / first["shard"])
    assert rows.keys() == {"a.png", "b.png"}
    assert torch.equal(rows["a.png"], rows["b.png"])
    (known,) = outcomes(encoder, one | {"known_keys": ["another", first["key"]]})
    assert known == {**first, "shard": ""}
    (changed,) = outcomes(encoder, image(tmp_path / "a.png", "blue", first["key"]))
    assert changed["shard"] not in ("", first["shard"])


def test_an_error_of_the_program_ends_the_job(
    encoder: GroupEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise TypeError("a mistake")

    monkeypatch.setattr(encoder, "_key_of", fail)
    (outcome,) = outcomes(
        encoder, image(tmp_path / "a.png", "red"), image(tmp_path / "b.png", "red")
    )
    assert outcome["fatal"] == "TypeError: a mistake"


def test_a_message_with_an_invalid_character_is_stored(
    encoder: GroupEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ImageError("caf\udce9")

    monkeypatch.setattr(encoder, "_key_of", fail)
    (outcome,) = outcomes(encoder, image(tmp_path / "a.png", "red"))
    assert outcome["error"] == "caf\\udce9"
