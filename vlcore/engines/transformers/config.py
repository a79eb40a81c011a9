"""``TransformersEngineConfig``: the settings of the embedded engine."""

from __future__ import annotations

from dataclasses import dataclass

from vlcore.engines.transformers.quantization import WEIGHTS
from vlcore.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class TransformersEngineConfig:
    """Settings of the embedded engine.

    Raises:
        OptionError: a setting is out of range.
    """

    max_num_seqs: int = 16
    """Maximum number of answers that are generated at the same time; others wait in order."""
    session_len: int | None = None
    """Maximum length of prompt and answer together, in tokens; ``None`` for the context length of
    the model."""
    max_cached_tokens: int | None = None
    """Size of the KV cache, in tokens. The answers that run at the same time need the sum of their
    maximum lengths. ``None`` uses half of the free memory."""
    max_prefill_tokens: int = 2048
    """Maximum number of prompt tokens, including padding, that are computed in one forward pass. A
    longer prompt is computed in chunks. While answers are running, chunks are so small that each
    takes about as long as two decoding steps."""
    prefix_caching: bool = True
    """Keep the keys and values of answers that have ended, and reuse those of the longest beginning
    that a prompt shares with any of them, or with a running one."""
    weights: str | None = None
    """``"int8"`` converts the weights of linear layers to 8 bits, which requires the extra
    ``vlcore[int8]`` on CUDA. ``"int4"``, on a CPU only, converts them to 4 bits, and those of the
    output layer to 8. Both save memory; ``docs/engine.md`` states which are faster, and the effect
    on results. ``None`` does not convert them."""
    pack_weights: bool = True
    """On a CPU, bring the weights into the order in which matrix products read them, and compute
    linear layers that have the same input together. A copy of the embedding is kept if the output
    layer shares its weight. ``False`` leaves the model as transformers computes it."""
    compile: bool = False
    """On a CPU, compile the decoder layers for decoding steps with ``torch.compile`` when the
    engine starts. This takes up to a minute, and requires a C++ compiler."""

    def __post_init__(self) -> None:
        for name, least, is_optional in (
            ("max_num_seqs", 1, False),
            ("session_len", 2, True),
            ("max_cached_tokens", 2, True),
            ("max_prefill_tokens", 1, False),
        ):
            value = getattr(self, name)
            if value is None and is_optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise OptionError(f"{name} must be an integer of at least {least}; it is {value!r}")
        for name in ("prefix_caching", "pack_weights", "compile"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise OptionError(f"{name} must be True or False; it is {value!r}")
        if self.weights is not None and self.weights not in WEIGHTS:
            known = ", ".join(map(repr, WEIGHTS))
            raise OptionError(f"weights must be {known} or None; it is {self.weights!r}")
