"""The configurations of transformers that belong to text configurations in plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vlcore.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def create_config(values: Mapping[str, Any], name: str) -> PretrainedConfig:
    """Create the configuration of a standard architecture, with all defaults filled in.

    Args:
        values: ``config.json`` of the standard architecture.
        name: the name of the checkpoint in messages.

    Raises:
        ConfigError: transformers does not know the ``model_type``, or rejects the values.
    """
    from transformers import CONFIG_MAPPING

    model_type = values["model_type"]
    arguments = _with_rope_parameters(values)
    del arguments["model_type"]
    padding, size = arguments.get("pad_token_id"), arguments.get("vocab_size")
    if isinstance(padding, int) and isinstance(size, int) and not -size <= padding < size:
        arguments["pad_token_id"] = None  # padding is never used, and must not prevent loading
    try:
        config: PretrainedConfig = CONFIG_MAPPING[model_type](**arguments)
    except Exception as error:
        raise ConfigError(
            f"transformers cannot read the text configuration of {name} as {model_type!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return config


def has_text_class(config: PretrainedConfig) -> bool:
    """Return whether transformers has a text-only class for a configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _with_rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert rotary settings to the form of transformers 5, which avoids a deprecation warning."""
    values = dict(config)
    scaling = values.pop("rope_scaling", None)
    if not isinstance(scaling, Mapping) or "rope_parameters" in values:
        return values
    parameters = {key: value for key, value in scaling.items() if key != "type"}
    parameters.setdefault("rope_type", scaling.get("type", "default"))
    parameters.setdefault("rope_theta", values.pop("rope_theta", 10000.0))
    return values | {"rope_parameters": parameters}
