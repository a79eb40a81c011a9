"""``TensorSource``: where a tensor of a module is stored in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlcore.checkpoint.weights import TensorInfo


@dataclass(frozen=True)
class TensorSource:
    """Where a tensor of a module is stored in a checkpoint."""

    name: str
    """The name of the stored tensor."""
    rows: slice | None = None
    """The part of the stored tensor's dimension 0; ``None`` for all of it."""

    def take(self, stored: Tensor) -> Tensor:
        """Copy the part out of the stored tensor."""
        return stored if self.rows is None else self.view(stored).clone()

    def view(self, stored: Tensor) -> Tensor:
        """Return the part as a view, which shares the stored tensor's memory."""
        return stored if self.rows is None else stored[self.rows]

    def describe(self, stored: TensorInfo) -> TensorInfo:
        """Return the dtype and shape of the part, given those of the stored tensor."""
        if self.rows is None:
            return stored
        length, *others = stored.shape
        num_rows = len(range(*self.rows.indices(length)))
        return TensorInfo(stored.dtype, (num_rows, *others))
