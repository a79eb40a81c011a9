"""Tensors of a checkpoint under the names of a standard architecture."""

from __future__ import annotations

from collections.abc import Mapping

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.tensor_source import TensorSource

_COMPUTED_SUFFIX = ".rotary_emb.inv_freq"


def renamed(checkpoint: Checkpoint, prefixes: Mapping[str, str]) -> dict[str, TensorSource]:
    """List the tensors whose names begin with one of several prefixes, under new names.

    Rotary frequencies, which old checkpoints store but every model computes, are left out.

    Args:
        checkpoint: the checkpoint that holds the tensors.
        prefixes: the prefix in the standard architecture for each prefix in the checkpoint; the
            first one that matches a name applies.
    """
    tensors = {}
    for name in checkpoint.tensor_names:
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if old is not None and not name.endswith(_COMPUTED_SUFFIX):
            tensors[prefixes[old] + name.removeprefix(old)] = TensorSource(name)
    return tensors
