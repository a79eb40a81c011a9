"""Typed values from a configuration.

Plugins use these functions, so that a value of the wrong type is reported with its key and file
before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlcore.errors import ConfigError

__all__ = ["integer", "one_of"]


def integer(config: Mapping[str, Any], key: str, where: str, *, default: int | None = None) -> int:
    """Read an integer.

    Args:
        config: the JSON object that holds the value.
        key: the key of the value.
        where: the description of the object in messages, such as ``"config.json of …"``.
        default: the value if the key is absent; ``None`` if the key is required.

    Raises:
        ConfigError: the value is absent or is not an integer.
    """
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{where}: {key} must be an integer; it is {value!r}")
    return value


def one_of(
    config: Mapping[str, Any],
    key: str,
    known: Sequence[str],
    where: str,
    *,
    default: str | None = None,
) -> str:
    """Read a string that must be one of several known values.

    Args:
        config: the JSON object that holds the value.
        key: the key of the value.
        known: the known values.
        where: the description of the object in messages, such as ``"config.json of …"``.
        default: the value if the key is absent or null; ``None`` if the key is required.

    Raises:
        ConfigError: the value is absent or unknown.
    """
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{key} in {where} is {value!r}; known: {', '.join(known)}")
    return value
