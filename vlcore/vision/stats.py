"""``EncoderStats``: statistics of an image encoder."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class EncoderStats:
    """A snapshot of counts and times since the encoder was created.

    Times, sizes and limits are ignored when two snapshots are compared.
    """

    num_images: int = 0
    """Number of requested images."""
    num_cache_hits: int = 0
    """Number of images whose embeddings were cached, or being computed for another request."""
    num_forwards: int = 0
    """Number of forward passes of the vision model."""
    num_encoded: int = 0
    """Number of images that were encoded by the vision model."""
    num_tiles: int = 0
    """Number of tiles in all forward passes; an image of a model without tiles counts as one."""
    num_failures: int = 0
    """Number of images that could not be read, preprocessed or encoded."""
    num_cancelled: int = 0
    """Number of images that were removed from the queue because no request needed them any more."""
    num_waiting: int = 0
    """Number of images that wait for the device at the moment."""
    max_batch_tiles: int = field(default=0, compare=False)
    """Current maximum number of tiles in a batch; reduced when memory runs out."""
    cached_images: int = field(default=0, compare=False)
    """Number of images whose embeddings are cached at the moment."""
    cached_bytes: int = field(default=0, compare=False)
    """Size of the cached embeddings."""
    batch_sizes: Mapping[int, int] = field(default_factory=dict, compare=False)
    """Number of forward passes by the number of images in them."""
    preprocess_s: float = field(default=0.0, compare=False)
    """Time for decoding, hashing and preprocessing, in seconds, summed over threads."""
    queue_wait_s: float = field(default=0.0, compare=False)
    """Time that preprocessed images waited for their batch, in seconds, summed over images."""
    forward_s: float = field(default=0.0, compare=False)
    """Time of the forward passes, in seconds."""

    def __str__(self) -> str:
        parts = [
            f"{self.num_images} image(s)",
            f"{self.num_encoded} encoded in {self.num_forwards} forward(s), {self.forward_s:.2f} s",
            f"{self.num_cache_hits} from the cache",
        ]
        if self.num_failures:
            parts.append(f"{self.num_failures} failed")
        return ", ".join(parts)


class Meter:
    """Collects the statistics of an encoder. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[str] = Counter()
        self._times: dict[str, float] = {"preprocess_s": 0.0, "queue_wait_s": 0.0, "forward_s": 0.0}
        self._batch_sizes: Counter[int] = Counter()

    def count(self, name: str, number: int = 1) -> None:
        """Increase a count."""
        with self._lock:
            self._values[name] += number

    def add_time(self, name: str, seconds: float) -> None:
        """Increase a time."""
        with self._lock:
            self._times[name] += seconds

    def count_forward(self, num_images: int, num_tiles: int, seconds: float) -> None:
        """Count a forward pass of the vision model."""
        with self._lock:
            self._values["num_forwards"] += 1
            self._values["num_tiles"] += num_tiles
            self._batch_sizes[num_images] += 1
            self._times["forward_s"] += seconds

    def stats(self, **current: Any) -> EncoderStats:
        """Take a snapshot, and add the given current values to it."""
        with self._lock:
            sizes = MappingProxyType(dict(sorted(self._batch_sizes.items())))
            values: dict[str, Any] = {**self._values, **self._times, **current}
            return EncoderStats(**values, batch_sizes=sizes)
