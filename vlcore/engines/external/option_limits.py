"""Refusals of options that are out of the range of another library."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vlcore.engines.generation import GenerationConfig
from vlcore.errors import OptionError

HINT = "or use engine='transformers'"
"""The end of each refusal: the embedded engine has all options."""


def check_max_values(
    config: GenerationConfig, max_values: Mapping[str, float], library: str
) -> None:
    """Check the options of sampling, which greedy decoding ignores.

    Raises:
        OptionError: an option is larger than the library accepts.
    """
    if config.is_greedy:
        return
    for name, most in max_values.items():
        if (value := getattr(config, name)) > most:
            or_all = ", or 0 for all tokens" if name == "top_k" else ""
            raise OptionError(
                f"{name} must be at most {most:g} with {library}{or_all}; it is {value}: lower "
                f"it, {HINT}"
            )


def check_num_end_tokens(
    config: GenerationConfig, end_token_ids: Collection[int], most: int, library: str
) -> None:
    """Check the number of the end tokens that a minimum length excludes.

    Raises:
        OptionError: there is a minimum length, and more end tokens than the library can exclude.
    """
    if config.min_new_tokens and len(end_token_ids) > most:
        raise OptionError(
            f"min_new_tokens works with at most {most} end tokens with {library}; there are "
            f"{len(end_token_ids)}: use fewer stop_token_ids, {HINT}"
        )
