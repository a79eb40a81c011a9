"""Log-probabilities of tokens, computed from logits."""

from __future__ import annotations

import torch
from torch import Tensor


def copy_to_host(logits: Tensor) -> Tensor:
    """Copy logits to an ordinary CPU tensor that does not keep the memory of ``logits`` alive."""
    with torch.inference_mode(False):
        return logits.to("cpu", copy=True)


def compute_logprobs(logits: Tensor, token_id: int, count: int) -> dict[int, float]:
    """Compute the log-probabilities of the chosen token and of the ``count`` most likely ones.

    Shapes:
        logits: [vocab] float32.
    """
    values = logits.log_softmax(dim=-1)
    highest = values.topk(count)
    chosen = {token_id: float(values[token_id])}
    return chosen | dict(zip(highest.indices.tolist(), highest.values.tolist(), strict=True))
