"""One forward for several images, in which each image keeps its own failure.

Runs in a thread of the device. Knows nothing of requests or queues.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from vlcore.errors import ImageError, PluginContractError, VlcoreError
from vlcore.vision.device_runner import DeviceRunner
from vlcore.vision.model import ImageInputs, ImageRows, VisionModel
from vlcore.vision.stats import Meter

_FORWARDS_BEFORE_GROWTH = 64
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")

Outcome = ImageRows | Exception
"""An image's rows, or why it has none."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a smaller batch may work; some backends say it in words only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _OUT_OF_MEMORY)


def explain(error: Exception, model: VisionModel, place: str) -> VlcoreError:
    """Say which image an error belongs to; what a plugin raised on purpose passes unchanged."""
    if isinstance(error, VlcoreError) and not isinstance(error, PluginContractError):
        return error
    name = type(model).__name__
    explained: VlcoreError
    if isinstance(error, PluginContractError):
        explained = PluginContractError(f"{place}: {error}")
    elif is_out_of_memory(error):
        explained = ImageError(
            f"{place}: {name} ran out of memory on this image alone: shrink it, or use a smaller "
            f"dtype ({type(error).__name__}: {error})"
        )
    else:
        explained = ImageError(f"{place}: {name}.forward failed: {type(error).__name__}: {error}")
    explained.__cause__ = error
    return explained


class BatchExecutor:
    """Encodes batches, and parts of those that fail.

    Args:
        replica: what encodes.
        max_tiles: how many tiles one forward takes at most, if it takes more than one image.
        meter: counts the forwards.
    """

    def __init__(self, replica: DeviceRunner, max_tiles: int, meter: Meter) -> None:
        self.max_tiles = max_tiles
        """Becomes smaller when memory runs out, and grows back as forwards succeed."""
        self._most_tiles = max_tiles
        self._num_good = 0
        """Forwards since memory ran out, or since the bound grew."""
        self._replica = replica
        self._meter = meter

    def __call__(self, inputs: Sequence[Any]) -> list[Outcome]:
        """Give an outcome for each image; a batch that fails is halved until the culprit is alone.

        Where memory runs out, later batches are smaller too, unless it runs out for a single image:
        then that image is too large, and the batch was not.
        """
        num_tiles = sum(len(of.pixels) if isinstance(of, ImageInputs) else 1 for of in inputs)
        if len(inputs) > 1 and num_tiles > self.max_tiles:
            return self._halves(inputs)
        outcomes = self._attempt(inputs, num_tiles)
        if isinstance(outcomes, list):
            self._grow()
            return outcomes
        if len(inputs) == 1:
            return [outcomes]
        if not is_out_of_memory(outcomes):
            return self._halves(inputs)
        max_tiles, self.max_tiles = self.max_tiles, max(1, num_tiles // 2)
        self._num_good = 0
        parts = self._halves(inputs)
        if any(isinstance(part, Exception) and is_out_of_memory(part) for part in parts):
            self.max_tiles = max_tiles
        return parts

    def _halves(self, inputs: Sequence[Any]) -> list[Outcome]:
        middle = len(inputs) // 2
        return [*self(inputs[:middle]), *self(inputs[middle:])]

    def _grow(self) -> None:
        """Try larger batches again after a while: others may have used the memory that ran out."""
        self._num_good += 1
        if self._num_good >= _FORWARDS_BEFORE_GROWTH:
            self._num_good = 0
            self.max_tiles = min(2 * self.max_tiles, self._most_tiles)

    def _attempt(self, inputs: Sequence[Any], num_tiles: int) -> list[Outcome] | Exception:
        started = time.perf_counter()
        try:
            return list(self._replica(inputs))
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold the failed forward's tensors
            return error
        finally:
            self._meter.count_forward(len(inputs), num_tiles, time.perf_counter() - started)
