"""Whether TurboMind can run a model on this machine, without importing lmdeploy or loading weights.

The supported releases of lmdeploy, architectures and head sizes are listed in ``turbomind.json``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

import torch
from packaging.specifiers import SpecifierSet

from vlcore.engines.external.support import describe_unsupported_head_size
from vlcore.errors import ConfigError

if TYPE_CHECKING:
    from vlcore.language.model import LanguageModel

EXTRA = "vlcore[turbomind]"
_INSTALL = f"pip install --constraint constraints-turbomind.txt '{EXTRA}'"
DTYPES = (torch.float16, torch.bfloat16)


def lmdeploy_version() -> str | None:
    """Return the version of the installed lmdeploy, without importing it."""
    try:
        found = importlib.util.find_spec("lmdeploy") is not None
        return metadata.version("lmdeploy") if found else None
    except (metadata.PackageNotFoundError, ValueError):
        return None


def unsupported_reason(
    language_model: LanguageModel, device: torch.device, dtype: torch.dtype, config: object = None
) -> str | None:
    """Return why TurboMind cannot run a model here, or ``None`` where it can.

    Args:
        language_model: the language model.
        device: device of the model.
        dtype: dtype of the computation, unless ``config`` sets it.
        config: lmdeploy's own settings, if any.
    """
    return (
        _unsupported_machine_reason(device)
        or _unsupported_model_reason(language_model)
        or (_unsupported_dtype_reason(dtype) if config is None else None)
    )


def is_turbomind_config(config: object) -> bool:
    """Return whether a value is lmdeploy's ``TurbomindEngineConfig``, without an import of it."""
    messages = sys.modules.get("lmdeploy.messages")
    return messages is not None and isinstance(config, messages.TurbomindEngineConfig)


def supported_versions() -> SpecifierSet:
    """Return the releases of lmdeploy that vlcore is tested with."""
    return SpecifierSet(_supported()["lmdeploy"])


def embedding_name(architecture: str) -> str:
    """Return the name of the token embedding's weight in a text-only architecture."""
    return str(_supported()["embeddings"][architecture])


@cache
def _supported() -> Mapping[str, Any]:
    text = resources.files("vlcore.engines.turbomind").joinpath("turbomind.json").read_text("utf-8")
    supported: dict[str, Any] = json.loads(text)
    return supported


def _unsupported_machine_reason(device: torch.device) -> str | None:
    version = lmdeploy_version()
    if version is None:
        return f"lmdeploy is not installed: {_INSTALL}"
    if not supported_versions().contains(version, prereleases=True):
        return (
            f"lmdeploy {version} is installed, and vlcore requires {supported_versions()}: "
            f"{_INSTALL}"
        )
    if device.type != "cuda":
        return f"it needs a CUDA device, and the device is {device}"
    return None


def _unsupported_model_reason(language_model: LanguageModel) -> str | None:
    try:
        config = language_model.view_config
    except ConfigError as error:
        return f"the model has no text view: {error}"
    architecture = config["architectures"][0]
    window = config.get("sliding_window")
    if (
        window is not None
        and window < config["max_position_embeddings"]
        and config.get("use_sliding_window", True)
    ):
        return (
            f"the tokens of this {architecture} attend to the last {window} tokens "
            "(sliding_window), and TurboMind's would attend to all of the "
            f"{config['max_position_embeddings']}"
        )
    supported = _supported()
    if architecture not in supported["embeddings"]:
        known = ", ".join(sorted(supported["embeddings"]))
        return f"it does not support {architecture}; it supports {known}"
    sizes = describe_unsupported_head_size(language_model, supported["head_sizes"])
    return f"its attention kernels support {sizes}" if sizes else None


def _unsupported_dtype_reason(dtype: torch.dtype) -> str | None:
    if dtype in DTYPES:
        return None
    return f"it computes in float16 or bfloat16, and the dtype is {str(dtype)[6:]}"
