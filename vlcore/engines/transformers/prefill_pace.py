"""``PrefillPace``: how many prompt tokens may be computed between two decoding steps."""

from __future__ import annotations

_STEPS_PER_CHUNK = 2.0
"""How long a chunk may take, in decoding steps. A running answer waits for a chunk and a step."""
_MIN_TOKENS = 32
"""Size of the first chunk, and of any chunk if steps are fast. Smaller ones take no less time,
because the weights are read once for all tokens of a chunk."""
_WEIGHT = 0.3
"""Weight of a new measurement in the average."""


class PrefillPace:
    """Measures how long decoding steps and prompts take."""

    def __init__(self) -> None:
        self._step_s: float | None = None
        self._token_s: float | None = None

    def record_step(self, seconds: float) -> None:
        """Record the time of a decoding step."""
        self._step_s = _average(self._step_s, seconds)

    def record_prompts(self, num_tokens: int, seconds: float) -> None:
        """Record the time of a forward pass over prompts, padding included."""
        if num_tokens >= _MIN_TOKENS // 2:
            self._token_s = _average(self._token_s, seconds / num_tokens)

    def max_tokens(self, limit: int) -> int:
        """Return the size of the next chunk, in tokens, at most ``limit``."""
        if not self._step_s or not self._token_s:
            return min(limit, _MIN_TOKENS)
        return min(limit, max(_MIN_TOKENS, int(_STEPS_PER_CHUNK * self._step_s / self._token_s)))


def _average(average: float | None, measured: float) -> float:
    return measured if average is None else average + _WEIGHT * (measured - average)
