"""The sampling options that a checkpoint recommends, in ``generation_config.json``."""

from __future__ import annotations

from typing import Any

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.engines.generation import GenerationConfig
from vlcore.errors import ConfigError, OptionError

_FILE_NAME = "generation_config.json"
_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def read_sampling_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the sampling options of ``generation_config.json``.

    ``vlcore serve`` uses them for the options that a request does not set. The Python API does not:
    there decoding is greedy by default.

    Returns:
        Those options of :class:`~vlcore.GenerationConfig` that the file states: ``temperature``,
        ``top_k``, ``top_p``, ``min_p`` and ``repetition_penalty``. If the file states
        ``"do_sample": false``, ``temperature`` is 0, which is greedy decoding. The result is empty
        if there is no such file.

    Raises:
        ConfigError: the file is not a JSON object, or a value is invalid.
    """
    stated = checkpoint.read_json(_FILE_NAME) or {}
    defaults = {name: stated[name] for name in _OPTIONS if stated.get(name) is not None}
    do_sample = stated.get("do_sample")
    options = defaults if do_sample is None else defaults | {"do_sample": do_sample}
    try:
        config = GenerationConfig(**options)
    except OptionError as error:
        raise ConfigError(f"{_FILE_NAME} of {checkpoint.name}: {error}") from error
    values = {name: getattr(config, name) for name in defaults}
    return values | {"temperature": 0.0} if do_sample is False else values
