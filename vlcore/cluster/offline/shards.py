"""``ShardDirectory``: image embeddings in many files of one directory, local or remote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlcore.errors import OptionError

FORMATS = ("parquet", "safetensors")
_PARTIAL = ".partial"
_ATOMIC_STORES = ("s3", "gcs", "abfs")
"""pyarrow's names of the object stores, where an object is visible only when it is complete."""
_NUM_READERS = 32
"""Number of shards whose names are read at the same time."""
_NUM_ATTEMPTS = 3
"""Number of times that a shard is written before that is an error."""


@dataclass(frozen=True)
class ImageEmbeddings:
    """The embeddings of an image.

    Shapes:
        rows: [k, row_width], on the CPU.
    """

    name: str
    key: str
    """Key of the image's content."""
    rows: Tensor


@dataclass(frozen=True)
class ShardDirectory:
    """Image embeddings in the files ``embeddings-*`` of a directory.

    A shard is written at once and never extended. Its name is a digest of the images in it, so that
    a shard that is written again replaces itself.

    Args:
        filesystem: a ``pyarrow.fs.FileSystem``.
        path: the directory on it.
        format: ``"parquet"`` or ``"safetensors"``.
        model: the key of the vision model that computes the embeddings.
    """

    filesystem: Any
    path: str
    format: str
    model: str

    def create(self) -> None:
        """Create the directory, and remove what an interrupted run has not completed.

        Raises:
            OptionError: the directory cannot be created, or is a file.
        """
        try:
            self.filesystem.create_dir(self.path, recursive=True)
            for path in self._paths(_PARTIAL):
                self.filesystem.delete_file(path)
        except Exception as error:  # each of fsspec's filesystems has errors of its own
            raise OptionError(
                f"--out expects a directory that can be written; {self.path!r} cannot be: {error}"
            ) from error

    def contents(self, known: Iterable[str] = ()) -> dict[str, dict[str, str]]:
        """Return the content keys of the images in each shard, by shard and image name.

        Args:
            known: shards that are left out.

        Raises:
            OptionError: a shard is damaged, of another format or of another model.
        """
        shards = sorted({path.rpartition("/")[2] for path in self._paths("")} - set(known))
        for shard in shards:
            if not shard.endswith(f".{self.format}"):
                raise OptionError(
                    f"{self.path!r} contains embeddings in another format than {self.format}: "
                    f"choose another --out ({shard})"
                )
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            return dict(zip(shards, pool.map(self._read_keys, shards), strict=True))

    def write(self, images: Sequence[ImageEmbeddings]) -> str:
        """Write images as one shard, and return the shard's name.

        Raises:
            OptionError: the shard cannot be written.
        """
        entries = sorted((image.name, image.key) for image in images)
        digest = hashlib.sha256(json.dumps([self.model, *entries]).encode()).hexdigest()[:20]
        shard = f"embeddings-{digest}.{self.format}"
        serialize = _to_parquet if self.format == "parquet" else _to_safetensors
        self.write_file(shard, serialize(images, self.model))
        return shard

    def write_file(self, name: str, data: Any) -> None:
        """Write a file next to the shards, or replace it.

        Args:
            name: the name of the file.
            data: its bytes.

        Raises:
            OptionError: the file cannot be written.
        """
        for attempt in range(_NUM_ATTEMPTS):
            try:
                self._write_atomically(self._path(name), data)
            except Exception as error:  # as above
                if attempt == _NUM_ATTEMPTS - 1:
                    raise OptionError(f"{self._path(name)!r} cannot be written: {error}") from error
            else:
                return

    def remove(self, shard: str, names: Iterable[str]) -> None:
        """Remove images from a shard, which is replaced by one of the remaining images.

        Raises:
            OptionError: the shard cannot be read or replaced.
        """
        read = _from_parquet if self.format == "parquet" else _from_safetensors
        removed = set(names)
        try:
            if not removed.issuperset(self._read_keys(shard)):
                with self.filesystem.open_input_file(self._path(shard)) as file:
                    images = read(file)
                self.write([image for image in images if image.name not in removed])
            self.filesystem.delete_file(self._path(shard))
        except OptionError:
            raise
        except Exception as error:  # as above
            raise OptionError(f"{self._path(shard)!r} cannot be replaced: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def _paths(self, suffix: str) -> list[str]:
        """Return the paths of the complete shards, or of files with another suffix."""
        from pyarrow.fs import FileSelector

        endings = (suffix,) if suffix else tuple(f".{name}" for name in FORMATS)
        infos = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        names = [(info.base_name, info.path) for info in infos]
        return [
            path
            for name, path in names
            if name.startswith("embeddings-") and name.endswith(endings)
        ]

    def _read_keys(self, shard: str) -> dict[str, str]:
        read = _parquet_keys if self.format == "parquet" else _safetensors_keys
        try:
            with self.filesystem.open_input_file(self._path(shard)) as file:
                model, keys = read(file)
        except Exception as error:  # as above, and those of the formats
            raise OptionError(
                f"{self._path(shard)!r} is not a shard of image embeddings: delete it, or choose "
                f"another --out ({type(error).__name__}: {error})"
            ) from error
        if model != self.model:
            raise OptionError(
                f"{self._path(shard)!r} contains embeddings of another model or dtype: choose "
                "another --out"
            )
        return keys

    def _write_atomically(self, path: str, data: Any) -> None:
        is_atomic = self.filesystem.type_name in _ATOMIC_STORES
        partial = path if is_atomic else f"{path}{_PARTIAL}"
        with self.filesystem.open_output_stream(partial) as file:
            file.write(data)
        if not is_atomic:
            self.filesystem.move(partial, path)


def _to_parquet(images: Sequence[ImageEmbeddings], model: str) -> Any:
    """Return a Parquet file with the bytes of the embeddings, because Arrow has no bfloat16."""
    import pyarrow
    from pyarrow import parquet

    rows = [image.rows.contiguous() for image in images]
    metadata = {
        "model": model,
        "dtype": str(rows[0].dtype).removeprefix("torch."),
        "row_width": str(rows[0].shape[1]),
    }
    table = pyarrow.table(
        {
            "name": [image.name for image in images],
            "key": [image.key for image in images],
            "num_rows": pyarrow.array([len(one) for one in rows], pyarrow.int64()),
            "rows": pyarrow.array(
                [one.view(torch.uint8).numpy().data for one in rows], pyarrow.large_binary()
            ),
        }
    ).replace_schema_metadata(metadata)
    sink = pyarrow.BufferOutputStream()
    # Embeddings do not shrink under compression.
    parquet.write_table(
        table, sink, compression="none", use_dictionary=False, write_statistics=["name"]
    )
    return sink.getvalue()


def _parquet_keys(file: Any) -> tuple[str, dict[str, str]]:
    from pyarrow import parquet

    table = parquet.read_table(file, columns=["name", "key"])
    names, keys = (table.column(name).to_pylist() for name in ("name", "key"))
    return table.schema.metadata[b"model"].decode(), dict(zip(names, keys, strict=True))


def _from_parquet(file: Any) -> list[ImageEmbeddings]:
    from pyarrow import parquet

    table = parquet.read_table(file)
    dtype = getattr(torch, table.schema.metadata[b"dtype"].decode())
    width = int(table.schema.metadata[b"row_width"])
    columns = [table.column(name) for name in ("name", "key", "num_rows", "rows")]
    images = []
    for name, key, num_rows, rows in zip(*columns, strict=True):
        data = bytearray(rows.as_buffer())
        tensor = torch.frombuffer(data, dtype=dtype).reshape(num_rows.as_py(), width)
        images.append(ImageEmbeddings(name.as_py(), key.as_py(), tensor))
    return images


def _to_safetensors(images: Sequence[ImageEmbeddings], model: str) -> bytes:
    from safetensors.torch import save

    keys = {image.name: image.key for image in images}
    metadata = {"format": "pt", "model": model, "keys": json.dumps(keys)}
    return save({image.name: image.rows.contiguous() for image in images}, metadata)


def _safetensors_keys(file: Any) -> tuple[str, dict[str, str]]:
    num_bytes = file.size() - 8
    header_size = int.from_bytes(file.read(8), "little")
    if not 0 < header_size <= num_bytes:
        raise ValueError(f"a header of {header_size} bytes in a file of {num_bytes + 8}")
    header = json.loads(file.read(header_size))
    metadata = header.pop("__metadata__")
    if header_size + max(tensor["data_offsets"][1] for tensor in header.values()) != num_bytes:
        raise ValueError("the file does not have the size that its header states")
    return metadata["model"], json.loads(metadata["keys"])


def _from_safetensors(file: Any) -> list[ImageEmbeddings]:
    from safetensors.torch import load

    _, keys = _safetensors_keys(file)
    file.seek(0)
    tensors = load(file.read())
    return [ImageEmbeddings(name, key, tensors[name]) for name, key in keys.items()]
