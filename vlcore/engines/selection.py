"""Selection of the engine for a model, before any weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlcore.engines.base import Engine
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.engines.turbomind.support import is_turbomind_config
from vlcore.engines.turbomind.support import unsupported_reason as turbomind_unsupported_reason
from vlcore.engines.vllm.arguments import check_config
from vlcore.engines.vllm.engine import VllmEngine
from vlcore.engines.vllm.support import is_vllm_config
from vlcore.engines.vllm.support import unsupported_reason as vllm_unsupported_reason
from vlcore.errors import EngineUnavailableError, OptionError
from vlcore.language.features import check_features, check_row_width
from vlcore.language.view_cache import ViewCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel

logger = logging.getLogger(__name__)

_ENGINES: tuple[type[Engine], ...] = (TurbomindEngine, VllmEngine, TransformersEngine)
ENGINES = ("auto", *(engine.name for engine in _ENGINES))
"""The names of the engines. ``"auto"`` selects the first of the others that can run a model."""
_TITLES = {TurbomindEngine.name: "TurboMind", VllmEngine.name: "vLLM"}


@dataclass(frozen=True)
class SelectedEngine:
    """An engine that can run a model on this machine, and that has not been started yet."""

    engine: type[Engine]
    language_model: LanguageModel
    settings: Mapping[str, Any]

    def start(self, tokenizer: PreTrainedTokenizerBase) -> Engine:
        """Load the language model and start the engine.

        Raises:
            EngineUnavailableError: the engine cannot start.
        """
        return self.engine(self.language_model, tokenizer, **self.settings)  # type: ignore[call-arg]


def select_engine(
    engine: str,
    language_model: LanguageModel,
    *,
    device: torch.device,
    dtype: torch.dtype,
    config: object = None,
    self_test: bool = True,
    progress: bool = False,
) -> SelectedEngine:
    """Select an engine, and do those preparations that need no device.

    The type of ``config`` selects its engine. Otherwise ``"auto"`` selects TurboMind, or else vLLM,
    where the machine, the installed packages and the model allow it, and logs the reason where they
    do not. A failure after the selection is an error and never selects another engine.

    Args:
        engine: name of the engine, or ``"auto"``.
        language_model: the language model.
        device: device of the language model.
        dtype: dtype of the language model.
        config: settings of the engine.
        self_test: let TurboMind or vLLM check that image embeddings have the right effect.
        progress: show progress bars.

    Raises:
        EngineUnavailableError: no engine, or not the requested one, can run the model here.
        OptionError: the engine is unknown, or the settings belong to another engine.
        ViewError: the text view for TurboMind or vLLM cannot be written.
    """
    _check(engine, config)
    requested = _engine_of(config) if engine == "auto" and config is not None else engine
    name = language_model.checkpoint.name
    common: dict[str, Any] = {"device": device, "dtype": dtype}
    for external in _external_engines():
        if requested not in ("auto", external.name):
            continue
        title = _TITLES[external.name]
        reason = _external_unsupported_reason(external, language_model, device, dtype, config)
        if reason is None:
            logger.info("%s runs on %s, %s", name, title, device)
            if external is TurbomindEngine:
                _check_devices(device, config)
            view = ViewCache().get(language_model, progress=progress)
            settings = {"view": view, "config": config, "self_test": self_test}
            return SelectedEngine(external, language_model, common | settings)
        if requested == external.name:
            raise EngineUnavailableError(f"{title} cannot run {name} here: {reason}")
        logger.info("%s does not run on %s: %s", name, title, reason)
    if reason := _missing_features(TransformersEngine, language_model):
        raise EngineUnavailableError(f"the transformers engine cannot run {name}: {reason}")
    logger.info("%s runs on the transformers engine, %s, %s", name, device, dtype)
    settings = {"config": config, "progress": progress}
    return SelectedEngine(TransformersEngine, language_model, common | settings)


def unsupported_reasons(
    language_model: LanguageModel, device: torch.device, dtype: torch.dtype
) -> dict[str, str | None]:
    """Return, for each engine, why it cannot run a model here, or ``None``; the best one first."""
    reasons = {
        external.name: _external_unsupported_reason(external, language_model, device, dtype)
        for external in _external_engines()
    }
    return reasons | {
        TransformersEngine.name: _missing_features(TransformersEngine, language_model)
    }


def _external_engines() -> tuple[type[Engine], ...]:
    """Return the engines of other libraries, which load a text view, in the order of "auto"."""
    return (TurbomindEngine, VllmEngine)


def _external_unsupported_reason(
    engine: type[Engine],
    language_model: LanguageModel,
    device: torch.device,
    dtype: torch.dtype,
    config: object = None,
) -> str | None:
    if missing := _missing_features(engine, language_model):
        return missing
    if engine is TurbomindEngine:
        return turbomind_unsupported_reason(language_model, device, dtype, config)
    return vllm_unsupported_reason(language_model, device, dtype)


def _check(engine: str, config: object) -> None:
    """Check the name of an engine, and that settings belong to it.

    Raises:
        OptionError: the engine is unknown, or the settings belong to another engine or to none.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine must be one of {', '.join(ENGINES)}; it is {engine!r}")
    expected = {
        "auto": "a TransformersEngineConfig, lmdeploy's TurbomindEngineConfig or vLLM's "
        "AsyncEngineArgs",
        TurbomindEngine.name: "lmdeploy's TurbomindEngineConfig",
        VllmEngine.name: "vLLM's AsyncEngineArgs, or a dict of its fields,",
        TransformersEngine.name: "a TransformersEngineConfig",
    }
    if engine == VllmEngine.name and isinstance(config, Mapping):
        check_config(config)
        return
    owner = _engine_of(config)
    if config is not None and (owner is None or engine not in ("auto", owner)):
        raise OptionError(
            f"engine_config must be {expected[engine]} with engine={engine!r}, not "
            f"{type(config).__name__}"
        )


def _engine_of(config: object) -> str | None:
    """Return the name of the engine that settings belong to."""
    if isinstance(config, TransformersEngineConfig):
        return TransformersEngine.name
    if is_turbomind_config(config):
        return TurbomindEngine.name
    return VllmEngine.name if is_vllm_config(config) else None


def _missing_features(engine: type[Engine], language_model: LanguageModel) -> str | None:
    """Return which features an engine lacks, what it offers, and which engine has them."""
    name = language_model.checkpoint.name
    requires = check_features(language_model.requires, name)
    check_row_width(language_model.row_width, language_model.hidden_size, requires, name)
    if requires <= engine.offers:
        return None
    others = [other.name for other in _ENGINES if requires <= other.offers]
    advice = f"use engine={others[0]!r}" if others else "no engine of vlcore offers all of them"
    return (
        f"it lacks {_listed(requires - engine.offers)}: the model requires {_listed(requires)}, "
        f"and the engine offers {_listed(engine.offers)}; {advice}"
    )


def _listed(features: Set[str]) -> str:
    return ", ".join(sorted(features)) or "none of the features that a model may require"


def _check_devices(device: torch.device, config: object) -> None:
    """Check that lmdeploy's settings do not put the model on another device than requested.

    Raises:
        OptionError: a device other than the first one was requested, and the settings list none,
            which would use the first one.
    """
    if config is not None and device.index and not getattr(config, "devices", None):
        raise OptionError(
            f"device={str(device)!r} was requested, and TurboMind would run on the first device: "
            f"set TurbomindEngineConfig(devices=[{device.index}])"
        )
