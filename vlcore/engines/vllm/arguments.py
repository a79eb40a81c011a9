"""The arguments with which vLLM is started: the caller's, and those that vlcore depends on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlcore.errors import OptionError

LOAD_FORMAT = "vlcore"
"""Name under which :mod:`vlcore.engines.vllm.loader` is registered."""

_FIXED: Mapping[str, Any] = {
    "enable_prompt_embeds": True,
    "skip_tokenizer_init": False,  # grammars need the tokenizer
    "generation_config": "vllm",  # options that a request does not set have vlcore's defaults
    "max_logprobs": -1,
    "logprobs_mode": "raw_logprobs",
}
"""Arguments on which the meaning of requests depends."""


def fixed_arguments(view: Path) -> dict[str, Any]:
    """Return the arguments that vlcore sets, whatever the caller's are.

    Args:
        view: directory of the language model's text view.
    """
    return {"model": str(view), **_FIXED}


def check_config(config: Mapping[str, Any]) -> None:
    """Check that a caller's arguments do not contradict those that vlcore sets.

    Raises:
        OptionError: an argument is one that vlcore sets.
    """
    for name in ("model", *_FIXED):
        if name in config and config[name] != _FIXED.get(name):
            raise OptionError(
                f"engine_config must not set {name}={config[name]!r}: vlcore starts vLLM on the "
                f"model's text view with {name}={_FIXED.get(name, 'the view')!r}"
            )


def complete(config: Mapping[str, Any] | Any, view: Path, defaults: Mapping[str, Any]) -> Any:
    """Return the arguments to start vLLM with.

    Args:
        config: vLLM's ``AsyncEngineArgs``, which is copied, or a mapping of some of its fields.
        view: directory of the language model's text view.
        defaults: values of the fields that ``config`` leaves open: those that are not in a
            mapping, and those that are ``None`` or ``"auto"``.

    Returns:
        A mapping or an ``AsyncEngineArgs``, as ``config`` is.

    Raises:
        OptionError: an argument is one that vlcore sets.
    """
    fixed = fixed_arguments(view)
    if isinstance(config, Mapping):
        check_config(config)
        given = {name: value for name, value in config.items() if value not in (None, "auto")}
        return {**defaults, **given, **fixed}
    if config.logprobs_mode != _FIXED["logprobs_mode"]:
        check_config({"logprobs_mode": config.logprobs_mode})
    completed = copy.copy(config)
    for name in ("dtype", "max_model_len", "load_format"):
        if getattr(completed, name) in (None, "auto"):
            setattr(completed, name, defaults[name])
    for name, value in fixed.items():
        setattr(completed, name, value)
    return completed
