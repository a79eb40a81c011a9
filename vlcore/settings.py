"""Single values out of a configuration, or an error that says what was expected there.

For plugins: a value of the wrong kind is told with its key and its file, before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlcore.errors import ConfigError

__all__ = ["integer", "one_of"]


def integer(config: Mapping[str, Any], key: str, where: str, *, default: int | None = None) -> int:
    """Read an integer.

    Args:
        config: the JSON object that holds it.
        key: its name there.
        where: what messages call the object, such as ``"config.json of …"``.
        default: stands in where the key is absent; ``None`` where it must be there.

    Raises:
        ConfigError: it is absent or no integer.
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
    """Read one of a few words.

    Args:
        config: the JSON object that holds it.
        key: its name there.
        known: the words.
        where: what messages call the object, such as ``"config.json of …"``.
        default: stands in where the key is absent or null; ``None`` where it must be there.

    Raises:
        ConfigError: it is absent or another word.
    """
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{key} in {where} is {value!r}; known: {', '.join(known)}")
    return value
