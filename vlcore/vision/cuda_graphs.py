"""CUDA graphs of a tower: its kernels are recorded once for a few batch sizes, and launched as one.

What a tower of many small kernels costs at a small batch is mostly their launching, which also
competes with the language model's thread for the interpreter.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

GRAPH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Tiles of which a batch is recorded. Of larger ones, launching is a small part."""
_MAX_PADDING = 1 / 4
"""Of a batch: what would be padded more runs as it is."""

Tower = Callable[[Tensor], Tensor]
Recorder = Callable[[Callable[[], None]], Callable[[], object]]
"""Takes work for the device, and gives what launches it again."""


class CudaRecorder:
    """Records work as CUDA graphs, which share one pool of memory because no two run at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], None]) -> Callable[[], object]:
        """Record what ``work`` launches on the current stream."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        stream = torch.cuda.current_stream()
        for _ in range(2):  # libraries choose their kernels and workspaces in the first calls
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the language model's, go on using the device meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            work()
        return graph.replay


class CudaGraphs:
    """A tower that is recorded at the first batch of each size. Not thread-safe.

    A tower that cannot be recorded, because it waits for the device or chooses by what it computed,
    runs as it is, and the log says so once.

    Args:
        tower: takes pixels [N, 3, H, W], gives features [N, T, D].
        record: records what is launched.
    """

    def __init__(self, tower: Tower, record: Recorder) -> None:
        self._tower = tower
        self._record = record
        self._refused = False
        self._replays: dict[int, Callable[[], object]] = {}
        self._pixels = self._features = torch.empty(0)
        """Where every recording reads and writes; of the largest size."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode tiles; the batch is padded to a size that is recorded.

        Shapes:
            pixels: [N, 3, H, W]; result: [N, T, D], which the next call leaves alone.
        """
        size = padded_size(len(pixels))
        if size is None or self._refused:
            return self._tower(pixels)
        if not self._replays:
            self._prepare(pixels)
        if pixels.shape[1:] != self._pixels.shape[1:] or pixels.dtype != self._pixels.dtype:
            return self._tower(pixels)
        self._pixels[: len(pixels)].copy_(pixels)
        if size not in self._replays and not self._add(size):
            return self._tower(pixels)
        self._replays[size]()
        return self._features[: len(pixels)].clone()

    def _prepare(self, pixels: Tensor) -> None:
        one = self._tower(pixels[:1])
        largest = GRAPH_SIZES[-1]
        self._pixels = pixels.new_zeros((largest, *pixels.shape[1:]))
        self._features = one.new_empty((largest, *one.shape[1:]))

    def _add(self, size: int) -> bool:
        def work() -> None:
            self._features[:size].copy_(self._tower(self._pixels[:size]))

        try:
            self._replays[size] = self._record(work)
        except Exception as error:
            self._refused = True
            logger.warning(
                "the vision tower runs without CUDA graphs: it cannot be recorded for %d tile(s) "
                "(%s: %s)",
                size,
                type(error).__name__,
                error,
            )
        return not self._refused


def padded_size(num_tiles: int) -> int | None:
    """The recorded size for a batch; ``None`` where padding would cost more than it saves."""
    place = bisect_left(GRAPH_SIZES, num_tiles)
    if place == len(GRAPH_SIZES):
        return None
    size = GRAPH_SIZES[place]
    return size if size - num_tiles <= _MAX_PADDING * num_tiles else None
