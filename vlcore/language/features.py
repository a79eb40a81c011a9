"""The features of language models that an engine may lack."""

from __future__ import annotations

from collections.abc import Mapping

from vlcore.errors import PluginContractError

FEATURES: Mapping[str, str] = {
    "mrope": "positions on several axes, which LanguageModel.prompt_inputs returns",
    "deepstack": "image embeddings that are also added after the first decoder layers",
    "attention_groups": "tokens that attend to each other in both directions",
}
"""The names that ``LanguageModel.requires`` may hold, and what each of them means."""


def check_features(requires: object, name: str) -> frozenset[str]:
    """Check the features that a language model requires.

    Args:
        requires: the value of ``LanguageModel.requires``.
        name: the name of the checkpoint.

    Raises:
        PluginContractError: it is not a set of known names.
    """
    if not isinstance(requires, frozenset | set) or not requires <= FEATURES.keys():
        known = "; ".join(f"{feature!r}, {meaning}" for feature, meaning in FEATURES.items())
        raise PluginContractError(
            f"requires of the language model of {name} must be a frozenset of these names: {known}."
            f" It is {requires!r}"
        )
    return frozenset(requires)
