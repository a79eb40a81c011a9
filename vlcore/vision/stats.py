"""What an image encoder did so far, as one frozen snapshot."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class EncoderStats:
    """Counts and times since the encoder was made; times do not count when two are compared."""

    num_images: int = 0
    """Images asked for."""
    num_cache_hits: int = 0
    """Images whose rows were kept, or were just being computed for another request."""
    num_forwards: int = 0
    """Calls of the vision model."""
    num_encoded: int = 0
    """Images that went through the vision model."""
    num_tiles: int = 0
    """Tiles in these calls; an image of a plugin without tiles counts as one."""
    num_failures: int = 0
    """Images that have no rows: their file, preprocessing or forward is at fault."""
    num_cancelled: int = 0
    """Images that left the queue because nobody wanted them any more."""
    num_waiting: int = 0
    """Images that wait for the device now."""
    max_batch_tiles: int = field(default=0, compare=False)
    """The bound of a batch now: smaller than what was asked for once memory ran out."""
    cached_images: int = field(default=0, compare=False)
    """Images whose rows are kept now."""
    cached_bytes: int = field(default=0, compare=False)
    """What these rows take."""
    batch_sizes: Mapping[int, int] = field(default_factory=dict, compare=False)
    """How many calls took how many images."""
    preprocess_s: float = field(default=0.0, compare=False)
    """Spent decoding, hashing and preprocessing, summed over threads."""
    queue_wait_s: float = field(default=0.0, compare=False)
    """Spent by prepared images until their batch began, summed over images."""
    forward_s: float = field(default=0.0, compare=False)
    """Spent in the vision model."""

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
    """Counts from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[str] = Counter()
        self._times: dict[str, float] = {"preprocess_s": 0.0, "queue_wait_s": 0.0, "forward_s": 0.0}
        self._batch_sizes: Counter[int] = Counter()

    def count(self, name: str, number: int = 1) -> None:
        """Add to one of the counts."""
        with self._lock:
            self._values[name] += number

    def time(self, name: str, seconds: float) -> None:
        """Add to one of the times."""
        with self._lock:
            self._times[name] += seconds

    def count_forward(self, num_images: int, num_tiles: int, seconds: float) -> None:
        """Add one call of the vision model."""
        with self._lock:
            self._values["num_forwards"] += 1
            self._values["num_tiles"] += num_tiles
            self._batch_sizes[num_images] += 1
            self._times["forward_s"] += seconds

    def stats(self, **now: Any) -> EncoderStats:
        """Take a snapshot, together with what holds now."""
        with self._lock:
            sizes = MappingProxyType(dict(sorted(self._batch_sizes.items())))
            values: dict[str, Any] = {**self._values, **self._times, **now}
            return EncoderStats(**values, batch_sizes=sizes)
