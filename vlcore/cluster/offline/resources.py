"""``Replicas``: how many encoders a job has, and what each takes of the cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from vlcore.errors import OptionError


@dataclass(frozen=True)
class Replicas:
    """The encoders of a job."""

    number: int
    """Maximum number of encoders; a smaller cluster runs fewer."""
    device: str
    """``"cpu"`` or ``"cuda"``."""
    num_cpus: float
    """CPUs for each encoder, which it computes or preprocesses with."""
    num_gpus: float
    """GPUs for each encoder; a fraction shares one GPU among several."""

    @classmethod
    def choose(
        cls,
        nodes: Sequence[Mapping[str, float]],
        *,
        device: str = "auto",
        number: int | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
    ) -> Self:
        """Complete what a caller has chosen by what the nodes have.

        By default, there is an encoder on each GPU, or on each node if the cluster has none, and
        the encoders of a node share its CPUs.

        Args:
            nodes: the resources of each node by Ray's names, ``"CPU"`` and ``"GPU"``.
            device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
            number: maximum number of encoders.
            num_cpus: CPUs for each encoder.
            num_gpus: GPUs for each encoder.

        Raises:
            OptionError: an option is out of range, or asks for GPUs where there are none.
        """
        _check(device, number, num_cpus, num_gpus)
        has_gpus = any(node.get("GPU", 0) for node in nodes)
        if device == "auto":
            device = "cuda" if num_gpus or (num_gpus is None and has_gpus) else "cpu"
        if device == "cpu" and num_gpus:
            raise OptionError(f"an encoder on the cpu uses no GPU; {num_gpus:g} were requested")
        if device == "cuda" and num_gpus == 0:
            raise OptionError("an encoder on cuda needs a GPU or a fraction of one; it is 0")
        if device == "cuda" and not has_gpus and number is None:
            raise OptionError(
                "the cluster has no GPUs at the moment: choose --device cpu, or state the number "
                "of encoders that it can grow to"
            )
        num_gpus = 0.0 if device == "cpu" else num_gpus or 1.0
        fits = (
            [(node.get("CPU", 0), int(node.get("GPU", 0) / num_gpus)) for node in nodes]
            if (num_gpus)
            else [(node.get("CPU", 0), 1 if node.get("CPU", 0) else 0) for node in nodes]
        )
        fits = [(cpus, capacity) for cpus, capacity in fits if capacity]
        if number is None:
            number = max(1, sum(capacity for _, capacity in fits))
        if device == "cpu":  # several encoders may share a node
            fits = [(cpus, math.ceil(number / len(fits))) for cpus, _ in fits]
        if num_cpus is None:
            shares = [cpus / min(capacity, number) for cpus, capacity in fits] or [1.0]
            num_cpus = math.floor(min(shares)) or max(min(shares), 0.1)
        return cls(number, device, num_cpus, num_gpus)

    def fit_on(self, nodes: Sequence[Mapping[str, float]]) -> bool:
        """Return whether one of the nodes has what an encoder takes."""
        return any(
            node.get("CPU", 0) >= self.num_cpus and node.get("GPU", 0) >= self.num_gpus
            for node in nodes
        )


def _check(device: str, number: int | None, num_cpus: float | None, num_gpus: float | None) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise OptionError(
            f"the device of encoders on a cluster is auto, cpu or cuda, because Ray chooses the "
            f"GPU; it is {device!r}"
        )
    if number is not None and number < 1:
        raise OptionError(f"the number of encoders must be at least 1; it is {number}")
    for name, value in (("CPUs", num_cpus), ("GPUs", num_gpus)):
        if value is not None and not 0 <= value < math.inf:
            raise OptionError(f"the {name} for each encoder must not be negative; it is {value}")
