"""Whether TurboMind can run a model here, from facts alone: nothing is imported, loaded or written.

Which releases of lmdeploy, architectures and head sizes it takes is in ``turbomind.json``.
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

from vlcore.errors import ConfigError

if TYPE_CHECKING:
    from vlcore.language.model import LanguageModel

EXTRA = "vlcore[turbomind]"
_INSTALL = f"pip install --constraint constraints-turbomind.txt '{EXTRA}'"
DTYPES = (torch.float16, torch.bfloat16)


def lmdeploy_version() -> str | None:
    """The installed lmdeploy's version, without importing it."""
    try:
        found = importlib.util.find_spec("lmdeploy") is not None
        return metadata.version("lmdeploy") if found else None
    except (metadata.PackageNotFoundError, ValueError):
        return None


def unsupported_reason(
    language_model: LanguageModel, device: torch.device, dtype: torch.dtype, config: object = None
) -> str | None:
    """Say why TurboMind cannot run a model here, or nothing where it can.

    Args:
        language_model: the text part.
        device: where it would run.
        dtype: what it would compute in, unless ``config`` says so.
        config: lmdeploy's own settings, if any were given.
    """
    return (
        _reason_against_machine(device)
        or _reason_against_model(language_model)
        or (_reason_against_dtype(dtype) if config is None else None)
    )


def is_turbomind_config(config: object) -> bool:
    """Whether it is lmdeploy's ``TurbomindEngineConfig``, without importing lmdeploy."""
    messages = sys.modules.get("lmdeploy.messages")
    return messages is not None and isinstance(config, messages.TurbomindEngineConfig)


def supported_versions() -> SpecifierSet:
    """The releases of lmdeploy that vlcore was checked against."""
    return SpecifierSet(_facts()["lmdeploy"])


def embedding_name(architecture: str) -> str:
    """The name of a text architecture's token table."""
    return str(_facts()["embeddings"][architecture])


@cache
def _facts() -> Mapping[str, Any]:
    text = resources.files("vlcore.engines.turbomind").joinpath("turbomind.json").read_text("utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts


def _reason_against_machine(device: torch.device) -> str | None:
    version = lmdeploy_version()
    if version is None:
        return f"lmdeploy is not installed: {_INSTALL}"
    if not supported_versions().contains(version, prereleases=True):
        return (
            f"lmdeploy {version} is installed and vlcore is checked against {supported_versions()}"
            f": {_INSTALL}"
        )
    if device.type != "cuda":
        return f"it needs a CUDA device, and the device is {device}"
    return None


def _reason_against_model(language_model: LanguageModel) -> str | None:
    try:
        config = language_model.view_config
    except ConfigError as error:
        return f"there is no text view for it: {error}"
    architecture = config["architectures"][0]
    window = config.get("sliding_window")
    if (
        window is not None
        and window < config["max_position_embeddings"]
        and config.get("use_sliding_window", True)
    ):
        return (
            f"a token of this {architecture} looks back at {window} tokens (sliding_window), and "
            f"TurboMind's would look at all of its {config['max_position_embeddings']}"
        )
    if architecture not in _facts()["embeddings"]:
        return (
            f"it does not take {architecture}; it takes {', '.join(sorted(_facts()['embeddings']))}"
        )
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if head_size not in _facts()["head_sizes"]:
        return (
            f"its attention has kernels for heads of size {_listed(_facts()['head_sizes'])}; those "
            f"of {language_model.checkpoint.name} have {head_size}"
        )
    return None


def _reason_against_dtype(dtype: torch.dtype) -> str | None:
    if dtype in DTYPES:
        return None
    return f"it computes in float16 or bfloat16, and the dtype is {str(dtype)[6:]}"


def _listed(sizes: list[int]) -> str:
    *others, last = map(str, sizes)
    return f"{', '.join(others)} or {last}"
