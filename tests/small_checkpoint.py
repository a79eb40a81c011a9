"""A checkpoint of a few small tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import write_json
from torch import Tensor
from weight_files import (
    Tensors,
    single_safetensors,
)

from vlcore import Checkpoint

Writer = Callable[[Path, Tensors], None]


def some_tensors() -> dict[str, Tensor]:
    """Return the tensors of the checkpoint, each of another dtype."""
    return {
        "a.weight": torch.arange(6, dtype=torch.float16).view(2, 3),
        "a.bias": torch.tensor([0.5, -2.0]),
        "b.weight": torch.full((1,), 3.0, dtype=torch.bfloat16),
        "b.counts": torch.tensor([1, 2, 3]),
    }


def write_checkpoint(directory: Path, write: Writer = single_safetensors) -> Path:
    """Write the checkpoint, with its weights in one of several layouts."""
    directory.mkdir(exist_ok=True, parents=True)
    write_json(directory / "config.json", {"architectures": ["MadeUp"]})
    write(directory, some_tensors())
    return directory


def read(checkpoint: Checkpoint, **options: Any) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint."""
    return dict(checkpoint.tensors(checkpoint.tensor_names, **options))
