"""Translates a request's options into those of lmdeploy.

Options that TurboMind would truncate, clamp or interpret differently are refused here, or
implemented by vlcore instead.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vlcore.engines.external.continuation import Continuation
from vlcore.engines.external.option_limits import (
    HINT,
    check_max_values,
    check_num_end_tokens,
)
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import OptionError

MAX_IDS = 32
"""TurboMind ignores further end tokens and banned tokens of a request."""
MAX_VALUES = {"temperature": 2.0, "top_k": 1024}
"""The largest values that TurboMind does not clamp."""
_UNSUPPORTED = ("frequency_penalty", "presence_penalty", "logit_bias")
"""Options whose values other than 0, or an empty mapping, TurboMind does not support."""


def check_options(config: GenerationConfig, end_token_ids: Collection[int]) -> None:
    """Check that TurboMind can apply a request's options as vlcore defines them.

    Args:
        config: the request's options.
        end_token_ids: tokens that end its answers.

    Raises:
        OptionError: an option is out of TurboMind's range, or not supported by it.
    """
    check_max_values(config, MAX_VALUES, "TurboMind")
    for name in _UNSUPPORTED:
        if value := getattr(config, name):
            raise OptionError(
                f"TurboMind does not support {name}; it is {value!s:.100}: remove it, {HINT}"
            )
    if len(set(config.bad_token_ids)) > MAX_IDS:
        raise OptionError(
            f"bad_token_ids must be at most {MAX_IDS} tokens with TurboMind; there are "
            f"{len(set(config.bad_token_ids))}: use fewer, {HINT}"
        )
    check_num_end_tokens(config, end_token_ids, MAX_IDS, "TurboMind")


def to_turbomind(continuation: Continuation, eos_token_ids: Collection[int]) -> dict[str, Any]:
    """Return the keyword arguments of lmdeploy's ``GenerationConfig`` for one answer.

    Stop strings, ``n``, detokenization and log-probabilities are not translated, because vlcore
    implements them. lmdeploy's own log-probabilities are relative to the tokens that remain after
    top-k and top-p filtering, so for greedy decoding they are always 0; vlcore computes them from
    the logits.

    Args:
        continuation: what TurboMind is to generate.
        eos_token_ids: the model's end-of-sequence tokens.
    """
    config, end_token_ids = continuation.config, continuation.end_token_ids
    options: dict[str, Any] = {
        "max_new_tokens": continuation.max_new_tokens,
        "do_sample": not config.is_greedy,
        # lmdeploy's sampler always samples; with top_k=1 that is greedy.
        "top_k": 1,
        "top_p": 1.0,
        "min_p": 0.0,
        "temperature": 1.0,
        "repetition_penalty": float(config.repetition_penalty),
        # TurboMind confuses the end tokens of a batch in which some request has none. Every request
        # therefore has some, and one that should not have any sets ignore_eos.
        "stop_token_ids": sorted(end_token_ids or eos_token_ids)[:MAX_IDS],
        "ignore_eos": not end_token_ids,
        "min_new_tokens": continuation.min_new_tokens,
        "bad_token_ids": sorted({*config.bad_token_ids, *continuation.banned_token_ids}),
        "output_logits": _output_logits(config, continuation.num_generated),
        "random_seed": 0,
    }
    if not config.is_greedy:
        options |= continuation.sampling_options | {"random_seed": continuation.choose_seed(64)}
    return options


def _output_logits(config: GenerationConfig, num_generated: int) -> str | None:
    if config.output_logits == "all" and num_generated:  # the prompt's logits were returned before
        return "generation"
    return config.output_logits or ("generation" if config.logprobs is not None else None)
