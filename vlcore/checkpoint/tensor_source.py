"""Where a tensor that a module wants is stored in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vlcore.checkpoint.weights import TensorInfo


@dataclass(frozen=True)
class TensorSource:
    """Where a tensor that a module wants lies in a checkpoint."""

    name: str
    rows: slice | None = None
    """The part of dimension 0 that it is; ``None`` for all of it."""

    def take(self, stored: Tensor) -> Tensor:
        """Cut the part out of the stored tensor."""
        return stored if self.rows is None else self.view(stored).clone()

    def view(self, stored: Tensor) -> Tensor:
        """Look at the part; it shares the stored tensor's memory."""
        return stored if self.rows is None else stored[self.rows]

    def describe(self, stored: TensorInfo) -> TensorInfo:
        """Tell what the part is of a stored tensor that was not read."""
        if self.rows is None:
            return stored
        length, *others = stored.shape
        num_rows = len(range(*self.rows.indices(length)))
        return TensorInfo(stored.dtype, (num_rows, *others))
