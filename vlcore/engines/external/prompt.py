"""``HostPrompt``: a prompt as an engine of another library receives it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vlcore.engines.base import EngineRequest
from vlcore.errors import OptionError, PluginContractError


@dataclass(frozen=True)
class HostPrompt:
    """The token ids of a prompt, and the embeddings that replace those of some tokens.

    Shapes:
        embeddings: [end - begin, hidden_size] each, on the host, one for each of ``ranges``.
    """

    token_ids: tuple[int, ...]
    """Positions of image embeddings hold a token of the prompt's text."""
    embeddings: tuple[Tensor, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    """Half-open ranges of positions in ``token_ids``, in order and without overlap."""


def to_host_prompt(request: EngineRequest, dtype: torch.dtype) -> HostPrompt:
    """Translate the prompt of a request, and copy its image embeddings to the host.

    Args:
        request: a request that :meth:`Engine.check` has accepted.
        dtype: dtype of the engine's computation.

    Raises:
        OptionError: there is a repetition penalty, and the prompt has no text tokens.
        PluginContractError: spans overlap, or image embeddings are not finite.
    """
    prompt = request.prompt
    spans = sorted(
        (span for span in prompt.spans if span.start < span.stop), key=lambda span: span.start
    )
    for before, after in pairwise(spans):
        if after.start < before.stop:
            raise PluginContractError(f"{before} and {after} overlap")
    on_host = [_copy_to_host(rows, image, dtype) for image, rows in enumerate(request.rows)]
    covered = {i for span in spans for i in range(span.start, span.stop)}
    token_ids = list(prompt.token_ids)
    if covered:
        placeholder_id = _choose_placeholder_id(request, covered)
        for position in covered:
            token_ids[position] = placeholder_id
    return HostPrompt(
        tuple(token_ids),
        tuple(
            on_host[span.image][span.first_row : span.first_row + span.stop - span.start]
            for span in spans
        ),
        tuple((span.start, span.stop) for span in spans),
    )


def _copy_to_host(rows: Tensor, image: int, dtype: torch.dtype) -> Tensor:
    on_host = rows.detach().to(device="cpu", dtype=dtype)
    if not on_host.isfinite().all():
        raise PluginContractError(
            f"the embeddings of image {image} hold NaN or values too large for {str(dtype)[6:]}: "
            "run the vision model in float32 or bfloat16"
        )
    return on_host


def _choose_placeholder_id(request: EngineRequest, covered: set[int]) -> int:
    """Choose the token id at positions of image embeddings.

    A repetition penalty counts it as a token of the prompt, so it must be one that is in the text
    anyway.
    """
    token_ids = request.prompt.token_ids
    text_id = next((token_id for i, token_id in enumerate(token_ids) if i not in covered), None)
    if text_id is not None:
        return text_id
    if request.config.repetition_penalty != 1:
        raise OptionError(
            "repetition_penalty needs a prompt with at least one text token: the engine would also "
            "apply it to the placeholders of the image embeddings"
        )
    return token_ids[0]
