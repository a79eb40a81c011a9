"""Image embeddings as Ray's object store keeps them: read without a copy, in any data type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedRows:
    """The embeddings of one image as an array of NumPy, which Ray keeps outside of its messages.

    NumPy has no bfloat16: types of 16 bits travel as integers with the same bits.

    Shapes:
        bits: [k, row_width].
    """

    dtype: str
    bits: Any


def pack(rows: Tensor) -> PackedRows:
    """Pack embeddings; on the CPU they are not copied."""
    rows = rows.detach().contiguous().cpu()
    bits = rows.view(torch.int16) if rows.element_size() == 2 else rows
    return PackedRows(str(rows.dtype).removeprefix("torch."), bits.numpy())


def unpack(packed: PackedRows) -> Tensor:
    """Return the embeddings, in memory that must not be written to."""
    rows = torch.from_numpy(packed.bits)
    dtype: torch.dtype = getattr(torch, packed.dtype)
    return rows if rows.dtype is dtype else rows.view(dtype)
