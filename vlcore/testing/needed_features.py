"""Features that an engine needs for a language model, as far as ``config.json`` shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any


def needed_features(config: Mapping[str, Any]) -> dict[str, str]:
    """Find what a language model needs in addition to image embeddings.

    Values that ``config.json`` leaves out are those of transformers' configuration class, if
    transformers knows the ``model_type``.

    Args:
        config: ``config.json`` of a checkpoint.

    Returns:
        Where each feature of ``LanguageModel.requires`` was found, such as
        ``"text_config.rope_scaling.mrope_section in config.json"``.
    """
    found: dict[str, str] = {}
    sources = {"config.json": config, "the defaults of transformers": _with_defaults(config)}
    for source, values in sources.items():
        for path, key, value in _entries(values):
            for feature, signs in _signs().items():
                is_type = key == "model_type" and value in signs.get("model_types", ())
                if is_type or (key in signs.get("keys", ()) and value):
                    shown = f"model_type {value!r}" if is_type else path
                    found.setdefault(feature, f"{shown} in {source}")
    return found


@cache
def _signs() -> dict[str, dict[str, list[str]]]:
    text = resources.files("vlcore.testing").joinpath("needed_features.json").read_text("utf-8")
    signs: dict[str, dict[str, list[str]]] = json.loads(text)
    return signs


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return {}
    try:
        values: dict[str, Any] = CONFIG_MAPPING[model_type].from_dict(dict(config)).to_dict()
    except Exception:  # other checks report that the values cannot be read
        return {}
    return values


def _entries(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield the path, the key and the value of each entry of nested JSON objects."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            name = str(key)
            yield f"{path}{name}", name, inner
            yield from _entries(inner, f"{path}{name}.")
