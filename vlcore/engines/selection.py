"""Selection of the engine for a model, before any weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlcore.engines.base import Engine
from vlcore.engines.transformers.engine import TransformersEngine, TransformersEngineConfig
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.engines.turbomind.support import is_turbomind_config, unsupported_reason
from vlcore.errors import EngineUnavailableError, OptionError
from vlcore.language.features import check_features
from vlcore.language.view_cache import ViewCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel

logger = logging.getLogger(__name__)

_ENGINES: tuple[type[Engine], ...] = (TurbomindEngine, TransformersEngine)
ENGINES = ("auto", *(engine.name for engine in _ENGINES))


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

    The type of ``config`` selects its engine. Otherwise ``"auto"`` selects TurboMind where the
    machine, lmdeploy and the model allow it, and logs the reason where they do not. A failure after
    the selection is an error and never selects another engine.

    Args:
        engine: name of the engine, or ``"auto"``.
        language_model: the language model.
        device: device of the language model.
        dtype: dtype of the language model.
        config: settings of the engine.
        self_test: let TurboMind check that injected image embeddings have the right effect.
        progress: show progress bars.

    Raises:
        EngineUnavailableError: no engine, or not the requested one, can run the model here.
        OptionError: the engine is unknown, or the settings belong to another engine.
        ViewError: TurboMind's text view cannot be written.
    """
    _check(engine, config)
    requested = _engine_of(config) if engine == "auto" and config is not None else engine
    name = language_model.checkpoint.name
    common: dict[str, Any] = {"device": device, "dtype": dtype}
    if requested in ("auto", TurbomindEngine.name):
        reason = _turbomind_unsupported_reason(language_model, device, dtype, config)
        if reason is None:
            logger.info("%s runs on TurboMind, %s", name, device)
            _check_devices(device, config)
            view = ViewCache().get(language_model, progress=progress)
            settings = {"view": view, "config": config, "self_test": self_test}
            return SelectedEngine(TurbomindEngine, language_model, common | settings)
        if requested == TurbomindEngine.name:
            raise EngineUnavailableError(f"TurboMind cannot run {name} here: {reason}")
        logger.info("%s does not run on TurboMind: %s", name, reason)
    if reason := _missing_features(TransformersEngine, language_model):
        raise EngineUnavailableError(f"the transformers engine cannot run {name}: {reason}")
    logger.info("%s runs on the transformers engine, %s, %s", name, device, dtype)
    settings = {"config": config, "progress": progress}
    return SelectedEngine(TransformersEngine, language_model, common | settings)


def unsupported_reasons(
    language_model: LanguageModel, device: torch.device, dtype: torch.dtype
) -> dict[str, str | None]:
    """Return, for each engine, why it cannot run a model here, or ``None``; the best one first."""
    return {
        TurbomindEngine.name: _turbomind_unsupported_reason(language_model, device, dtype),
        TransformersEngine.name: _missing_features(TransformersEngine, language_model),
    }


def _turbomind_unsupported_reason(
    language_model: LanguageModel,
    device: torch.device,
    dtype: torch.dtype,
    config: object = None,
) -> str | None:
    missing = _missing_features(TurbomindEngine, language_model)
    return missing or unsupported_reason(language_model, device, dtype, config)


def _check(engine: str, config: object) -> None:
    """Check the name of an engine, and that settings belong to it.

    Raises:
        OptionError: the engine is unknown, or the settings belong to another engine or to none.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine must be one of {', '.join(ENGINES)}; it is {engine!r}")
    expected = {
        "auto": "a TransformersEngineConfig or lmdeploy's TurbomindEngineConfig",
        TurbomindEngine.name: "lmdeploy's TurbomindEngineConfig",
        TransformersEngine.name: "a TransformersEngineConfig",
    }
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
    return TurbomindEngine.name if is_turbomind_config(config) else None


def _missing_features(engine: type[Engine], language_model: LanguageModel) -> str | None:
    """Return which features an engine lacks, what it offers, and which engine has them."""
    requires = check_features(language_model.requires, language_model.checkpoint.name)
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
