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


def check_row_width(row_width: int, hidden_size: int, requires: frozenset[str], name: str) -> None:
    """Check the width of image embeddings that a language model states.

    Args:
        row_width: the value of ``LanguageModel.row_width``.
        hidden_size: the width of an embedding of the language model.
        requires: the features that it requires.
        name: the name of the checkpoint.

    Raises:
        PluginContractError: ``row_width`` is not ``hidden_size``, or with ``"deepstack"`` not a
            larger multiple of it.
    """
    num_layers, rest = divmod(row_width, max(1, hidden_size))  # the embedding and what is added
    is_multiple = num_layers > 0 and not rest
    if not is_multiple or (num_layers > 1) != ("deepstack" in requires):
        expected = "hidden_size * (1 + layers)" if "deepstack" in requires else "hidden_size"
        raise PluginContractError(
            f"row_width of the language model of {name} must be {expected}, where hidden_size is "
            f"{hidden_size} and requires is {sorted(requires)}; it is {row_width}"
        )


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
