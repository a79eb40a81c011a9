"""Tensors of a language model that are tied: the same under two names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from vlcore.checkpoint.tensor_source import TensorSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def add_tied_sources(
    model: PreTrainedModel, tensors: Mapping[str, TensorSource]
) -> dict[str, TensorSource]:
    """Return the sources of tensors, and of those that a model ties to one of them."""
    sources = dict(tensors)
    for key, original in _tied_keys(model).items():
        if key not in sources and original in sources:
            sources[key] = sources[original]
        elif original not in sources and key in sources:
            sources[original] = sources[key]
    return sources


def tie_absent(model: PreTrainedModel, stored: Collection[str]) -> None:
    """Tie a loaded model's tensors, except those that are both stored, with different values."""
    tied = _tied_keys(model)
    absent = {key for key in {*tied, *tied.values()} if key not in stored}
    model.tie_weights(missing_keys=absent, recompute_mapping=False)


def stores_tied(config: PretrainedConfig, stored: Collection[str]) -> bool:
    """Return whether two tensors are both stored that the model of a configuration ties."""
    from vlcore.language.causal_lm import tied_keys

    return any(key in stored and original in stored for key, original in tied_keys(config).items())


def _tied_keys(model: PreTrainedModel) -> dict[str, str]:
    return dict(getattr(model, "all_tied_weights_keys", None) or {})
