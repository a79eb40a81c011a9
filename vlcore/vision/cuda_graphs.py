"""CUDA graphs of a vision encoder, captured once for each of a few batch sizes.

At small batch sizes, the time of an encoder with many small kernels is dominated by launching them,
which also competes with the language model's thread for the interpreter.
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
"""The captured batch sizes, in tiles. For larger batches, launching takes a small part of the
time."""
_MAX_PADDING = 1 / 4
"""Maximum padding, relative to the size of the batch; other batches run without a graph."""

Tower = Callable[[Tensor], Tensor]
Recorder = Callable[[Callable[[], None]], Callable[[], object]]
"""Captures what a function launches on the device, and returns a function that replays it."""


class CudaRecorder:
    """Captures CUDA graphs, which share one memory pool because only one runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], None]) -> Callable[[], object]:
        """Capture what ``work`` launches on the current stream."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        for _ in range(2):  # libraries choose their kernels and workspaces in the first calls
            work()
        torch.cuda.current_stream().synchronize()
        try:
            return self._capture(work, self._pool).replay
        except Exception:
            self._clean_up()
            raise

    def _capture(self, work: Callable[[], object], pool: Any = None) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        # thread_local, because other threads use the device at the same time.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            work()
        return graph

    def _clean_up(self) -> None:
        """Undo what torch leaves behind, for the whole process, where a capture is invalidated.

        ``capture_end`` raises before it informs the allocator and the random number generator that
        the capture is over (seen in torch 2.11). Without this, memory that two streams used is
        never freed again, and ``torch.rand`` on the device raises an error.
        """
        device = torch.cuda.current_device()
        try:
            torch._C._cuda_endAllocateToPool(device, self._pool)
        except RuntimeError:  # the capture did end
            return
        torch._C._cuda_releasePool(device, self._pool)
        # The next capture that succeeds resets the generator.
        self._capture(torch.zeros((), device="cuda").zero_)


class CudaGraphs:
    """A vision encoder that is captured at the first batch of each size. Not thread-safe.

    An encoder that cannot be captured, because it synchronizes with the device or branches on
    computed values, runs without graphs, and a warning is logged once.

    Args:
        encoder: encodes pixels [N, 3, H, W] as features [N, T, D].
        record: captures a graph.
    """

    def __init__(self, encoder: Tower, record: Recorder) -> None:
        self._tower = encoder
        self._record = record
        self._is_disabled = False
        self._replays: dict[int, Callable[[], object]] = {}
        self._pixels = self._features = torch.empty(0)
        """The input and output buffers of all graphs, of the largest size."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode tiles, padded to a captured batch size.

        Shapes:
            pixels: [N, 3, H, W].
            result: [N, T, D], not overwritten by later calls.
        """
        size = padded_size(len(pixels))
        if size is None or self._is_disabled:
            return self._tower(pixels)
        if not self._replays:
            self._allocate_buffers(pixels)
        if pixels.shape[1:] != self._pixels.shape[1:] or pixels.dtype != self._pixels.dtype:
            return self._tower(pixels)
        self._pixels[: len(pixels)].copy_(pixels)
        if size not in self._replays and not self._capture(size):
            return self._tower(pixels)
        self._replays[size]()
        return self._features[: len(pixels)].clone()

    def _allocate_buffers(self, pixels: Tensor) -> None:
        features = self._tower(pixels[:1])
        max_size = GRAPH_SIZES[-1]
        self._pixels = pixels.new_zeros((max_size, *pixels.shape[1:]))
        self._features = features.new_empty((max_size, *features.shape[1:]))

    def _capture(self, size: int) -> bool:
        """Capture the graph of a batch size, and return whether that was possible."""

        def work() -> None:
            self._features[:size].copy_(self._tower(self._pixels[:size]))

        try:
            self._replays[size] = self._record(work)
        except Exception as error:
            self._is_disabled = True
            logger.warning(
                "the vision encoder runs without CUDA graphs: it cannot be captured for %d tile(s) "
                "(%s: %s)",
                size,
                type(error).__name__,
                str(error).partition("\n")[0],  # the other lines of CUDA's errors are advice
            )
        return not self._is_disabled


def padded_size(num_tiles: int) -> int | None:
    """Return the captured size for a batch, or ``None`` if the padding is not worth it."""
    index = bisect_left(GRAPH_SIZES, num_tiles)
    if index == len(GRAPH_SIZES):
        return None
    size = GRAPH_SIZES[index]
    return size if size - num_tiles <= _MAX_PADDING * num_tiles else None
