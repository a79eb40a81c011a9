"""Which engine runs a model: settled from facts, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlcore.engines.base import Engine
from vlcore.engines.transformers.engine import TransformersEngine, TransformersEngineConfig
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.engines.turbomind.support import is_turbomind_config, unsupported_reason
from vlcore.errors import EngineUnavailableError, OptionError
from vlcore.language.view_cache import ViewCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vlcore.language.model import LanguageModel

logger = logging.getLogger(__name__)

ENGINES = ("auto", TurbomindEngine.name, TransformersEngine.name)


@dataclass(frozen=True)
class SelectedEngine:
    """An engine that can run a model here, and that is not started yet."""

    engine: type[Engine]
    language_model: LanguageModel
    settings: Mapping[str, Any]

    def start(self, tokenizer: PreTrainedTokenizerBase) -> Engine:
        """Load the text part and start the engine.

        Raises:
            EngineUnavailableError: it cannot start.
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
    """Choose an engine, and make ready what takes no device.

    Settings of one engine choose it. Else ``"auto"`` is TurboMind where machine, lmdeploy and
    model allow, and says why it is not. What fails after the choice is an error, never another
    engine.

    Args:
        engine: its name, or ``"auto"``.
        language_model: the text part.
        device: where it runs.
        dtype: of the text part.
        config: the engine's settings.
        self_test: let TurboMind prove that it takes image rows for what they are.
        progress: show progress bars.

    Raises:
        EngineUnavailableError: no engine, or not the one asked for, can run the model here.
        OptionError: the engine is unknown, or the settings are not its.
        ViewError: TurboMind's text view cannot be written.
    """
    _check(engine, config)
    wanted = _owner(config) if engine == "auto" and config is not None else engine
    name = language_model.checkpoint.name
    placed: dict[str, Any] = {"device": device, "dtype": dtype}
    if wanted in ("auto", TurbomindEngine.name):
        reason = _against_turbomind(language_model, device, dtype, config)
        if reason is None:
            logger.info("%s runs on TurboMind, %s", name, device)
            _check_devices(device, config)
            view = ViewCache().get(language_model, progress=progress)
            settings = {"view": view, "config": config, "self_test": self_test}
            return SelectedEngine(TurbomindEngine, language_model, placed | settings)
        if wanted == TurbomindEngine.name:
            raise EngineUnavailableError(f"TurboMind cannot run {name} here: {reason}")
        logger.info("%s does not run on TurboMind: %s", name, reason)
    if reason := _lacking(TransformersEngine, language_model):
        raise EngineUnavailableError(f"the transformers engine cannot run {name}: {reason}")
    logger.info("%s runs on the transformers engine, %s, %s", name, device, dtype)
    settings = {"config": config, "progress": progress}
    return SelectedEngine(TransformersEngine, language_model, placed | settings)


def unsupported_reasons(
    language_model: LanguageModel, device: torch.device, dtype: torch.dtype
) -> dict[str, str | None]:
    """Give each engine, the best one first, and why it cannot run a model here, if it cannot."""
    return {
        TurbomindEngine.name: _against_turbomind(language_model, device, dtype),
        TransformersEngine.name: _lacking(TransformersEngine, language_model),
    }


def _against_turbomind(
    language_model: LanguageModel,
    device: torch.device,
    dtype: torch.dtype,
    config: object = None,
) -> str | None:
    lacking = _lacking(TurbomindEngine, language_model)
    return lacking or unsupported_reason(language_model, device, dtype, config)


def _check(engine: str, config: object) -> None:
    """Check the name of an engine, and whether settings are those of one.

    Raises:
        OptionError: the engine is unknown, or the settings are of another one or of none.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine must be one of {', '.join(ENGINES)}; it is {engine!r}")
    takes = {
        "auto": "a TransformersEngineConfig or lmdeploy's TurbomindEngineConfig",
        TurbomindEngine.name: "lmdeploy's TurbomindEngineConfig",
        TransformersEngine.name: "a TransformersEngineConfig",
    }
    owner = _owner(config)
    if config is not None and (owner is None or engine not in ("auto", owner)):
        raise OptionError(
            f"engine_config must be {takes[engine]} with engine={engine!r}, not "
            f"{type(config).__name__}"
        )


def _owner(config: object) -> str | None:
    if isinstance(config, TransformersEngineConfig):
        return TransformersEngine.name
    return TurbomindEngine.name if is_turbomind_config(config) else None


def _lacking(engine: type[Engine], language_model: LanguageModel) -> str | None:
    if lacking := sorted(language_model.requires - engine.offers):
        return f"it lacks {', '.join(lacking)}, which the model requires"
    return None


def _check_devices(device: torch.device, config: object) -> None:
    """See that lmdeploy's settings do not put the model somewhere else unasked.

    Raises:
        OptionError: a device was asked for, and the settings name none, which means the first.
    """
    if config is not None and device.index and not getattr(config, "devices", None):
        raise OptionError(
            f"device={str(device)!r} was asked for, and TurboMind would run on the first device: "
            f"say TurbomindEngineConfig(devices=[{device.index}])"
        )
