"""``GenerationConfig`` as lmdeploy's options of one request.

What TurboMind would cut off, clamp or read in another way is refused here, or done on this side.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vlcore.engines.base import EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import OptionError, PluginContractError

MAX_IDS = 32
"""TurboMind drops the end tokens and bad tokens of a request after so many."""
_MAX_TEMPERATURE = 2.0
_MAX_TOP_K = 1024
_HINT = "or use engine='transformers'"


def check_options(config: GenerationConfig, end_ids: Collection[int]) -> None:
    """Refuse what TurboMind cannot do as vlcore defines it.

    Args:
        config: the request's options.
        end_ids: tokens that end its answers.

    Raises:
        OptionError: an option is out of TurboMind's range.
    """
    if config.do_sample and config.temperature > _MAX_TEMPERATURE:
        raise OptionError(
            f"lmdeploy takes temperatures up to {_MAX_TEMPERATURE:g}; it is {config.temperature}: "
            f"lower it, {_HINT}"
        )
    if config.do_sample and config.top_k > _MAX_TOP_K:
        raise OptionError(
            f"TurboMind draws among {_MAX_TOP_K} tokens at most, or among all with top_k=0; it is "
            f"{config.top_k}: lower it, {_HINT}"
        )
    if len(set(config.bad_token_ids)) > MAX_IDS:
        raise OptionError(
            f"TurboMind takes {MAX_IDS} bad_token_ids; there are {len(set(config.bad_token_ids))}: "
            f"give fewer, {_HINT}"
        )
    if config.min_new_tokens and len(end_ids) > MAX_IDS:
        raise OptionError(
            f"TurboMind keeps {MAX_IDS} end tokens away before min_new_tokens; there are "
            f"{len(end_ids)}: give fewer stop_token_ids, {_HINT}"
        )


def to_turbomind(
    config: GenerationConfig,
    *,
    end_ids: Collection[int],
    eos_ids: Collection[int],
    forbidden_ids: Collection[int] = (),
    max_new_tokens: int,
    num_generated: int = 0,
    choice: int = 0,
) -> dict[str, Any]:
    """Write the options of one request as keywords of lmdeploy's ``GenerationConfig``.

    Stop texts, ``n`` and the text's form are this side's work, and so is what lmdeploy calls
    logprobs: its own are of the few tokens that the options leave, which for the likeliest token
    alone is always 0. vlcore takes them from the logits.

    Args:
        config: the request's options.
        end_ids: tokens that end its answers.
        eos_ids: the model's end tokens.
        forbidden_ids: tokens that may not come next, besides ``bad_token_ids``.
        max_new_tokens: how many tokens to generate at most.
        num_generated: how many tokens of the answer the prompt ends with.
        choice: which of the request's answers; each draws differently.
    """
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "do_sample": config.do_sample,
        # Whatever lmdeploy's sampler is told, it draws; among one token, that one.
        "top_k": 1,
        "top_p": 1.0,
        "min_p": 0.0,
        "temperature": 1.0,
        "repetition_penalty": float(config.repetition_penalty),
        # TurboMind mixes up the end tokens of a batch where a request has none: so each has some,
        # and a request without end tokens is told to ignore them.
        "stop_token_ids": sorted(end_ids or eos_ids)[:MAX_IDS],
        "ignore_eos": not end_ids,
        "min_new_tokens": max(0, config.min_new_tokens - num_generated) if end_ids else 0,
        "bad_token_ids": sorted({*config.bad_token_ids, *forbidden_ids}),
        "output_logits": _logits_wanted(config, num_generated),
        "random_seed": 0,
    }
    if config.do_sample:
        seed = config.random_seed
        options |= {
            "top_k": config.top_k,
            "top_p": float(config.top_p),
            "min_p": float(config.min_p),
            "temperature": float(config.temperature),
            "random_seed": random.getrandbits(64)
            if seed is None
            else (seed + choice + num_generated) % 2**64,
        }
    return options


def _logits_wanted(config: GenerationConfig, num_generated: int) -> str | None:
    if config.output_logits == "all" and num_generated:  # the prompt's came before
        return "generation"
    return config.output_logits or ("generation" if config.logprobs is not None else None)


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


def to_turbomind_prompt(request: EngineRequest, dtype: torch.dtype) -> TurbomindPrompt:
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
