"""``check_model``: whether a model computes what the engine needs of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlcore.errors import EngineUnavailableError

CHECKED_TOKEN_IDS = (0, 1)
OTHER_POSITIONS = (0, 5)
_TOLERANCE = 0.02
"""Largest difference of logits that rounding explains, as a share of their standard deviation."""


def check_model(
    name: str,
    compute: Callable[[], Tensor],
    compute_token_ids: Callable[[], Tensor],
    compute_elsewhere: Callable[[], Tensor],
    compute_in_chunks: Callable[[], Tensor] | None,
) -> None:
    """Check how a model reads a prompt of :data:`CHECKED_TOKEN_IDS`.

    The engine gives embeddings to a model for prompts, token ids for the tokens that follow, and
    positions for both. Some models need the token ids as well, and some count the positions
    themselves, from the length of transformers' own caches.

    Args:
        name: the name of the model's class.
        compute: computes the prompt from embeddings.
        compute_token_ids: computes the prompt from its token ids.
        compute_elsewhere: computes the prompt from embeddings, at :data:`OTHER_POSITIONS`.
        compute_in_chunks: computes the prompt in two chunks; ``None`` if the engine never does so.

    Shapes:
        results: [vocab] float32, the logits of the last token.

    Raises:
        EngineUnavailableError: results would be wrong, or a forward pass failed.
    """
    try:
        logits = compute()
        is_equal_by_token_ids = _is_close(compute_token_ids(), logits)
        reads_positions = not torch.equal(compute_elsewhere(), logits)
        # A model without positions is right to read none, as long as it counts none itself.
        is_equal_in_chunks = (
            reads_positions or compute_in_chunks is None or _is_close(compute_in_chunks(), logits)
        )
    except EngineUnavailableError:
        raise
    except Exception as error:
        raise EngineUnavailableError(
            f"the transformers engine cannot run {name}, because a forward pass over two tokens "
            f"failed: {type(error).__name__}: {error}"
        ) from error
    if not is_equal_by_token_ids:
        raise EngineUnavailableError(
            f"the transformers engine cannot run {name}, because it reads the token ids of a "
            "prompt in addition to their embeddings"
        )
    if not is_equal_in_chunks:
        raise EngineUnavailableError(
            f"the transformers engine cannot run {name}, because it counts positions itself and "
            "does not read those that it is given"
        )


def _is_close(logits: Tensor, expected: Tensor) -> bool:
    if not expected.isfinite().all():  # such a model fails with its first request
        return True
    tolerance = _TOLERANCE * float(expected.std(correction=0)) + 1e-6
    return bool((logits - expected).abs().max() <= tolerance)
