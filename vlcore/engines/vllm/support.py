"""Whether vLLM can run a model on this machine, without importing vLLM or loading weights.

The supported releases of vLLM and architectures are listed in ``vllm.json``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

import torch
from packaging.specifiers import SpecifierSet

from vlcore.engines.external.support import describe_unsupported_head_size
from vlcore.errors import ConfigError

if TYPE_CHECKING:
    from vlcore.language.model import LanguageModel

EXTRA = "vlcore[vllm]"
_INSTALL = f"pip install --constraint constraints-vllm.txt '{EXTRA}'"
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class InstalledVllm:
    """An installed vLLM, as its metadata describe it."""

    distribution: str
    version: str

    @property
    def device_type(self) -> str:
        """Type of the devices that this build computes on, by torch's name."""
        is_cpu = self.distribution.endswith("-cpu") or "+cpu" in self.version
        return "cpu" if is_cpu else "cuda"


def installed_vllm() -> InstalledVllm | None:
    """Return the installed vLLM, without importing it."""
    try:
        if importlib.util.find_spec("vllm") is None:
            return None
    except ValueError:
        return None
    for distribution in _supported()["distributions"]:
        try:
            return InstalledVllm(distribution, metadata.version(distribution))
        except metadata.PackageNotFoundError:
            continue
    return None


def unsupported_reason(
    language_model: LanguageModel, device: torch.device, dtype: torch.dtype
) -> str | None:
    """Return why vLLM cannot run a model here, or ``None`` where it can.

    Args:
        language_model: the language model.
        device: device of the model.
        dtype: dtype of the computation.
    """
    return (
        _unsupported_machine_reason(device)
        or _unsupported_model_reason(language_model, device)
        or _unsupported_dtype_reason(dtype)
    )


def is_vllm_config(config: object) -> bool:
    """Return whether a value is vLLM's ``AsyncEngineArgs``, without an import of it."""
    arguments = sys.modules.get("vllm.engine.arg_utils")
    return arguments is not None and isinstance(config, arguments.AsyncEngineArgs)


def supported_versions() -> SpecifierSet:
    """Return the releases of vLLM that vlcore is tested with."""
    return SpecifierSet(_supported()["vllm"])


def supported_architectures() -> tuple[str, ...]:
    """Return the text architectures that vlcore runs on vLLM."""
    return tuple(_supported()["embeddings"])


def embedding_name(architecture: str) -> str:
    """Return the name of the token embedding's weight in a text-only architecture."""
    return str(_supported()["embeddings"][architecture])


@cache
def _supported() -> Mapping[str, Any]:
    text = resources.files("vlcore.engines.vllm").joinpath("vllm.json").read_text("utf-8")
    supported: dict[str, Any] = json.loads(text)
    return supported


def _unsupported_machine_reason(device: torch.device) -> str | None:
    installed = installed_vllm()
    if installed is None:
        return f"vLLM is not installed: {_INSTALL}"
    if not supported_versions().contains(installed.version, prereleases=True):
        return (
            f"{installed.distribution} {installed.version} is installed, and vlcore requires vLLM "
            f"{supported_versions()}: {_INSTALL}"
        )
    if device.type != installed.device_type:
        return (
            f"{installed.distribution} {installed.version} computes on {installed.device_type} "
            f"devices, and the device is {device}"
        )
    return None


def _unsupported_model_reason(language_model: LanguageModel, device: torch.device) -> str | None:
    try:
        config = language_model.view_config
    except ConfigError as error:
        return f"the model has no text view: {error}"
    architecture = config["architectures"][0]
    if architecture not in _supported()["embeddings"]:
        known = ", ".join(sorted(_supported()["embeddings"]))
        return f"vlcore does not run {architecture} on it, but {known}"
    head_sizes = _supported()["head_sizes"].get(device.type)
    if head_sizes is None:
        return None
    sizes = describe_unsupported_head_size(language_model, head_sizes)
    return f"on a {device.type} its attention supports {sizes}" if sizes else None


def _unsupported_dtype_reason(dtype: torch.dtype) -> str | None:
    if dtype in DTYPES:
        return None
    known = ", ".join(str(known)[6:] for known in DTYPES)
    return f"it computes in {known}, and the dtype is {str(dtype)[6:]}"
