"""A prompt as TurboMind takes it: token ids, and embeddings for ranges of them.

TurboMind checks little of it and crashes or computes nonsense where it does not, so everything is
checked before it gets here (:meth:`Engine.check`) or here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vlcore.engines.base import EngineRequest
from vlcore.errors import OptionError, PluginContractError


@dataclass(frozen=True)
class TurbomindPrompt:
    """Token ids, and what replaces the embeddings of some.

    Shapes:
        embeddings: [end - begin, hidden_size] each, on the host, for each of ``ranges``.
    """

    token_ids: tuple[int, ...]
    embeddings: tuple[Tensor, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    """Positions ``begin <= i < end`` of the token ids, in order and apart."""


def lay_out(request: EngineRequest, dtype: torch.dtype) -> TurbomindPrompt:
    """Bring a checked request into TurboMind's form; image rows cross to the host here, once.

    Args:
        request: one that :meth:`Engine.check` let pass.
        dtype: what TurboMind computes in.

    Raises:
        OptionError: a repetition penalty for a prompt of image rows alone.
        PluginContractError: spans overlap, or rows are not finite numbers.
    """
    prompt = request.prompt
    spans = sorted(
        (span for span in prompt.spans if span.start < span.stop), key=lambda span: span.start
    )
    for before, after in pairwise(spans):
        if after.start < before.stop:
            raise PluginContractError(f"{before} and {after} overlap")
    on_host = [_to_host(rows, image, dtype) for image, rows in enumerate(request.rows)]
    covered = {i for span in spans for i in range(span.start, span.stop)}
    token_ids = list(prompt.token_ids)
    if covered:
        filler = _harmless_id(request, covered)
        for position in covered:
            token_ids[position] = filler
    return TurbomindPrompt(
        tuple(token_ids),
        tuple(
            on_host[span.image][span.first_row : span.first_row + span.stop - span.start]
            for span in spans
        ),
        tuple((span.start, span.stop) for span in spans),
    )


def _to_host(rows: Tensor, image: int, dtype: torch.dtype) -> Tensor:
    on_host = rows.detach().to(device="cpu", dtype=dtype)
    if not on_host.isfinite().all():
        raise PluginContractError(
            f"rows of image {image} hold NaN or numbers too large for {str(dtype)[6:]}: run the "
            "vision model in float32 or bfloat16"
        )
    return on_host


def _harmless_id(request: EngineRequest, covered: set[int]) -> int:
    """An id for the positions under rows, which the repetition penalty counts as seen.

    A token that the prompt holds anyway changes nothing.
    """
    token_ids = request.prompt.token_ids
    own = next((token_id for i, token_id in enumerate(token_ids) if i not in covered), None)
    if own is not None:
        return own
    if request.config.repetition_penalty != 1:
        raise OptionError(
            "repetition_penalty needs a prompt with a token besides its image rows: TurboMind "
            "would count the tokens under the rows as seen"
        )
    return token_ids[0]
