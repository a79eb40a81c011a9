"""Facts of a language model that decide whether another library can run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlcore.language.model import LanguageModel


def describe_unsupported_head_size(
    language_model: LanguageModel, head_sizes: Sequence[int]
) -> str | None:
    """Return the sizes of attention heads that a library supports, and that of the model.

    Args:
        language_model: a model that has a text view.
        head_sizes: the sizes that the library supports, at least two.

    Returns:
        ``None`` where the size is supported.
    """
    config = language_model.view_config
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if head_size in head_sizes:
        return None
    *others, last = map(str, head_sizes)
    return (
        f"heads of size {', '.join(others)} or {last}; those of {language_model.checkpoint.name} "
        f"have size {head_size}"
    )
