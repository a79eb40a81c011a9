"""Log-probabilities of tokens, from logits."""

from __future__ import annotations

import torch
from torch import Tensor


def to_host(logits: Tensor) -> Tensor:
    """Copy logits into an ordinary tensor of their own, which keeps nothing else alive."""
    with torch.inference_mode(False):
        return logits.to("cpu", copy=True)


def logprobs_of(logits: Tensor, token_id: int, count: int) -> dict[int, float]:
    """Log-probabilities of the chosen token and of the likeliest ones."""
    values = logits.log_softmax(dim=-1)
    highest = values.topk(count)
    own = {token_id: float(values[token_id])}
    return own | dict(zip(highest.indices.tolist(), highest.values.tolist(), strict=True))
