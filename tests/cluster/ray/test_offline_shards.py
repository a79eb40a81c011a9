from __future__ import annotations

import uuid
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet
from pyarrow.fs import FileSelector, FSSpecHandler, PyFileSystem
from safetensors.torch import load

from vlcore.cluster.offline.shards import FORMATS, ImageEmbeddings, ShardDirectory
from vlcore.errors import OptionError

MEMORY = PyFileSystem(FSSpecHandler(MemoryFileSystem()))


def new_directory(shard_format: str, model: str = "model") -> ShardDirectory:
    directory = ShardDirectory(MEMORY, f"/{uuid.uuid4().hex}", shard_format, model)
    directory.create()
    return directory


def images(*names: str, dtype: torch.dtype = torch.float32) -> list[ImageEmbeddings]:
    return [
        ImageEmbeddings(name, f"key of {name}", torch.randn(number, 3).to(dtype))
        for number, name in enumerate(names, 1)
    ]


def file_names(directory: ShardDirectory) -> list[str]:
    return sorted(info.base_name for info in MEMORY.get_file_info(FileSelector(directory.path)))


def stored(directory: ShardDirectory, shard: str) -> dict[str, torch.Tensor]:
    """Read a shard as the documentation shows."""
    with MEMORY.open_input_file(f"{directory.path}/{shard}") as file:
        if directory.format == "safetensors":
            return load(file.read())
        table = parquet.read_table(file)
    dtype = getattr(torch, table.schema.metadata[b"dtype"].decode())
    width = int(table.schema.metadata[b"row_width"])
    return {
        name.as_py(): torch.frombuffer(bytearray(rows.as_py()), dtype=dtype).reshape(-1, width)
        for name, rows in zip(table["name"], table["rows"], strict=True)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_shard_has_the_same_bits(shard_format: str, dtype: torch.dtype) -> None:
    directory = new_directory(shard_format)
    written = images("a", "é/b", dtype=dtype)
    shard = directory.write(written)
    assert directory.contents() == {shard: {"a": "key of a", "é/b": "key of é/b"}}
    rows = stored(directory, shard)
    assert rows.keys() == {"a", "é/b"}
    for image in written:
        assert rows[image.name].dtype == dtype
        assert torch.equal(rows[image.name], image.rows)


@pytest.mark.parametrize("shard_format", FORMATS)
def test_a_shard_that_is_written_again_replaces_itself(shard_format: str) -> None:
    directory = new_directory(shard_format)
    written = images("a", "b")
    assert directory.write(written) == directory.write(written[::-1])
    assert len(file_names(directory)) == 1
    assert directory.write(images("a")) != directory.write(written)


@pytest.mark.parametrize("shard_format", FORMATS)
def test_images_are_removed_from_a_shard(shard_format: str) -> None:
    directory = new_directory(shard_format)
    written = images("a", "b", "c", dtype=torch.bfloat16)
    directory.remove(directory.write(written), ["b"])
    ((shard, keys),) = directory.contents().items()
    assert keys == {"a": "key of a", "c": "key of c"}
    rows = stored(directory, shard)
    assert torch.equal(rows["a"], written[0].rows)
    assert torch.equal(rows["c"], written[2].rows)
    directory.remove(shard, ["a", "c"])
    assert file_names(directory) == []


@pytest.mark.parametrize("shard_format", FORMATS)
def test_what_is_no_shard_of_this_model_is_an_error(shard_format: str) -> None:
    directory = new_directory(shard_format)
    shard = directory.write(images("a", "b"))
    path = f"{directory.path}/{shard}"
    other = ShardDirectory(MEMORY, directory.path, shard_format, "another model")
    with pytest.raises(OptionError, match="of another model or dtype"):
        other.contents()
    (format_of_others,) = set(FORMATS) - {shard_format}
    others = ShardDirectory(MEMORY, directory.path, format_of_others, "model")
    with pytest.raises(OptionError, match="in another format than"):
        others.contents()
    with MEMORY.open_input_file(path) as file:
        data = file.read()
    for damaged in (data[: len(data) // 2], data[:-1], data[:4], b"", b"\xff" * 100):
        directory.write_file(shard, damaged)
        with pytest.raises(OptionError, match="is not a shard of image embeddings: delete it"):
            directory.contents()
    assert directory.contents([shard]) == {}  # one that is known is not read again


def test_what_an_interrupted_run_has_left_is_removed() -> None:
    directory = new_directory("parquet")
    directory.write_file("embeddings-1.parquet.partial", b"half")
    directory.write_file("notes.partial", b"of another program")
    assert directory.contents() == {}
    directory.create()
    assert file_names(directory) == ["notes.partial"]


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    protocol = "flaky"
    num_failures = 0

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb" and Flaky.num_failures:
            Flaky.num_failures -= 1
            raise OSError("no space left")
        return super()._open(path, mode, **options)


def test_writing_is_tried_again_and_then_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = PyFileSystem(FSSpecHandler(Flaky()))
    directory = ShardDirectory(filesystem, f"/{uuid.uuid4().hex}", "parquet", "model")
    directory.create()
    monkeypatch.setattr(Flaky, "num_failures", 2)
    assert len(directory.contents()) == 0
    shard = directory.write(images("a"))
    assert list(directory.contents()) == [shard]
    monkeypatch.setattr(Flaky, "num_failures", 3)
    with pytest.raises(OptionError, match=r"cannot be written: .*no space left"):
        directory.write(images("b"))
