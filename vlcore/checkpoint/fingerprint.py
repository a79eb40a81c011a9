"""Digests that change with the files of a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlcore.checkpoint.weights import read_header


def compute_fingerprint(directory: Path, weight_files: Iterable[Path]) -> str:
    """Compute the fingerprint of a checkpoint, or of a part of it.

    It covers the path of the directory, the sizes and modification times of ``config.json`` and the
    weight files, and the headers of safetensors files. Weights are never hashed.

    Args:
        directory: the checkpoint's directory.
        weight_files: the weight files that the fingerprint covers.
    """
    digest = hashlib.sha256()
    files = [directory / "config.json", *sorted(set(weight_files))]
    for field in (str(directory.resolve()), *_fields(files)):
        encoded = field.encode("utf-8", "surrogatepass")  # a path may have any bytes
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _fields(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        if not path.exists():
            continue
        status = path.stat()
        yield from (path.name, str(status.st_size), str(status.st_mtime_ns))
        if path.suffix == ".safetensors":
            yield read_header(path).decode("utf-8", "replace")
