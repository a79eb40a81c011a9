"""Reads tensors out of several weight files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlcore._utils.progress import progress_bar
from vlcore.checkpoint.weights import TensorInfo, open_weights

NamesByFile = Mapping[Path, Sequence[str]]
"""The names of the requested tensors, by the weight file that holds them."""


def read_tensors(
    names_by_file: NamesByFile,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    progress: bool,
) -> Iterator[tuple[str, Tensor]]:
    """Read tensors one at a time, file by file.

    Args:
        names_by_file: the names of the tensors.
        device: the device on which the tensors are returned.
        dtype: the dtype to which floating-point tensors are converted; ``None`` keeps the stored
            dtype.
        progress: whether to show a progress bar.

    Raises:
        TensorError: a file is damaged.
    """

    def convert(tensor: Tensor) -> Tensor:
        keeps_dtype = dtype is None or not tensor.is_floating_point()
        return tensor.to(device=device, dtype=None if keeps_dtype else dtype)

    total = sum(map(len, names_by_file.values()))
    with progress_bar(
        total, description="loading weights", unit="tensor", shown=progress
    ) as advance:
        for path, names in names_by_file.items():
            with open_weights(path) as reader:
                for name in reader.in_file_order(names):
                    yield name, convert(reader(name))  # no reference stays in this frame
                    advance()


def describe_tensors(names_by_file: NamesByFile) -> dict[str, TensorInfo]:
    """Return the dtypes and shapes of tensors, in the order in which they are read.

    Raises:
        TensorError: a file is damaged.
    """
    infos: dict[str, TensorInfo] = {}
    for path, names in names_by_file.items():
        with open_weights(path) as reader:
            infos |= {name: reader.describe(name) for name in reader.in_file_order(names)}
    return infos
