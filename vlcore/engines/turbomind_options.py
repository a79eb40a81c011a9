"""``GenerationConfig`` as lmdeploy's options of one request.

What TurboMind would cut off, clamp or read in another way is refused here, or done on this side.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

from vlcore.engines.generation import GenerationConfig
from vlcore.errors import OptionError

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
