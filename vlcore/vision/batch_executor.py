"""``BatchExecutor``: runs batches of images, and isolates the images that fail.

It is called in a thread of the device, and knows nothing of requests or queues.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from vlcore.errors import ImageError, PluginContractError, VlcoreError
from vlcore.vision.device_runner import DeviceRunner
from vlcore.vision.model import ImageRows, VisionModel, count_tiles
from vlcore.vision.stats import Meter

_SUCCESSES_BEFORE_GROWTH = 64
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "alloc_failed",  # cuBLAS and cuDNN, which allocate memory of their own
)

Outcome = ImageRows | Exception
"""An image's embeddings, or the error of an image that could not be encoded."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that there is too little memory for the batch."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error).lower()  # some backends raise a plain RuntimeError
    return isinstance(error, RuntimeError) and any(words in message for words in _OUT_OF_MEMORY)


def label_error(error: Exception, model: VisionModel, label: str) -> VlcoreError:
    """Add the label of the image to an error of a vision model.

    Errors of vlcore that a plugin raised deliberately are returned unchanged.
    """
    if isinstance(error, VlcoreError) and not isinstance(error, PluginContractError):
        return error
    name = type(model).__name__
    labelled: VlcoreError
    if isinstance(error, PluginContractError):
        labelled = PluginContractError(f"{label}: {error}")
    elif is_out_of_memory(error):
        labelled = ImageError(
            f"{label}: {name} ran out of memory on this image alone: shrink it, or use a smaller "
            f"dtype ({type(error).__name__}: {error})"
        )
    else:
        labelled = ImageError(f"{label}: {name}.forward failed: {type(error).__name__}: {error}")
    labelled.__cause__ = error
    return labelled


class BatchExecutor:
    """Runs batches, and splits those that fail.

    Args:
        runner: encodes a batch.
        max_tiles: maximum number of tiles in a batch of more than one image.
        meter: counts the forward passes.
    """

    def __init__(self, runner: DeviceRunner, max_tiles: int, meter: Meter) -> None:
        self.max_tiles = max_tiles
        """Reduced when memory runs out, and raised again after enough successful batches."""
        self._initial_max_tiles = max_tiles
        self._num_successes = 0
        """Number of successful batches since ``max_tiles`` was changed."""
        self._runner = runner
        self._meter = meter

    def __call__(self, inputs: Sequence[Any]) -> list[Outcome]:
        """Return an outcome for each image.

        A batch that fails is halved until the image that causes the failure is alone. If memory
        runs out, later batches are smaller too, unless it runs out for a single image, because then
        the image is too large rather than the batch.
        """
        num_tiles = sum(map(count_tiles, inputs))
        if len(inputs) > 1 and num_tiles > self.max_tiles:
            return self._run_halves(inputs)
        outcomes = self._run(inputs, num_tiles)
        if isinstance(outcomes, list):
            self._count_success()
            return outcomes
        if len(inputs) == 1:
            return [outcomes]
        if not is_out_of_memory(outcomes):
            return self._run_halves(inputs)
        max_tiles, self.max_tiles = self.max_tiles, max(1, num_tiles // 2)
        self._num_successes = 0
        outcomes = self._run_halves(inputs)
        if any(isinstance(item, Exception) and is_out_of_memory(item) for item in outcomes):
            self.max_tiles = max_tiles
        return outcomes

    def _run_halves(self, inputs: Sequence[Any]) -> list[Outcome]:
        middle = len(inputs) // 2
        return [*self(inputs[:middle]), *self(inputs[middle:])]

    def _count_success(self) -> None:
        """Allow larger batches again after a while, in case memory has become free."""
        self._num_successes += 1
        if self._num_successes >= _SUCCESSES_BEFORE_GROWTH:
            self._num_successes = 0
            self.max_tiles = min(2 * self.max_tiles, self._initial_max_tiles)

    def _run(self, inputs: Sequence[Any], num_tiles: int) -> list[Outcome] | Exception:
        started = time.perf_counter()
        try:
            return list(self._runner(inputs))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # the frames keep the failed pass's tensors
            return error
        finally:
            self._meter.count_forward(len(inputs), num_tiles, time.perf_counter() - started)
