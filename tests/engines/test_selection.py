from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_requests import CPU
from transformers import PreTrainedTokenizerBase

from vlcore.engines import selection
from vlcore.engines.base import Engine, EngineOutput, EngineRequest, EngineStats
from vlcore.engines.selection import SelectedEngine, select_engine
from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.errors import EngineUnavailableError, OptionError, PluginContractError, ViewError
from vlcore.language.model import LanguageModel

CUDA = torch.device("cuda")


class LmdeploysConfig:
    """In place of lmdeploy's ``TurbomindEngineConfig``."""

    def __init__(self, devices: list[int] | None = None) -> None:
        self.devices = devices


class FakeTurbomind(Engine):
    """Keeps what it was started with."""

    name = "turbomind"

    def __init__(self, *values: Any, **settings: Any) -> None:
        self.values = values
        self.settings = settings

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineOutput]:
        yield EngineOutput("", (), "stop")

    async def close(self) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats(0, 0)


class VllmsConfig:
    """In place of vLLM's ``AsyncEngineArgs``."""


class FakeVllm(FakeTurbomind):
    name = "vllm"


class FakeViews:
    """Gives a view without writing one."""

    def get(self, language_model: LanguageModel, *, progress: bool = False) -> Path:
        return Path("the view")


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "TurbomindEngine", FakeTurbomind)
    monkeypatch.setattr(selection, "ViewCache", FakeViews)
    monkeypatch.setattr(selection, "turbomind_unsupported_reason", lambda *_: None)
    monkeypatch.setattr(selection, "VllmEngine", FakeVllm)
    monkeypatch.setattr(selection, "vllm_unsupported_reason", lambda *_: "the sun is low")
    monkeypatch.setattr(selection, "is_vllm_config", lambda config: isinstance(config, VllmsConfig))
    monkeypatch.setattr(
        selection, "is_turbomind_config", lambda config: isinstance(config, LmdeploysConfig)
    )


def prepare(
    language_model: LanguageModel,
    engine: str = "auto",
    *,
    device: torch.device = CUDA,
    config: object = None,
    **settings: Any,
) -> SelectedEngine:
    return select_engine(
        engine, language_model, device=device, dtype=torch.float16, config=config, **settings
    )


@pytest.mark.parametrize("engine", ["auto", "turbomind"])
def test_turbomind_runs_the_supported_models(
    language_model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    caplog: pytest.LogCaptureFixture,
    engine: str,
) -> None:
    with caplog.at_level(logging.INFO):
        made: Any = prepare(language_model, engine, self_test=False).start(tokenizer)
    assert isinstance(made, FakeTurbomind)
    assert made.values == (language_model, tokenizer)
    assert made.settings["view"] == Path("the view")
    assert made.settings["self_test"] is False
    assert "runs on TurboMind" in caplog.text


def test_auto_logs_why_it_is_not_turbomind(
    language_model: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(selection, "turbomind_unsupported_reason", lambda *_: "the moon is full")
    with caplog.at_level(logging.INFO):
        start = prepare(language_model)
    assert start.engine is TransformersEngine
    assert "does not run on TurboMind: the moon is full" in caplog.text
    assert "runs on the transformers engine" in caplog.text


def test_a_requested_turbomind_is_never_replaced(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "turbomind_unsupported_reason", lambda *_: "the moon is full")
    for settings in ({"engine": "turbomind"}, {"config": LmdeploysConfig()}):
        with pytest.raises(EngineUnavailableError, match=r"cannot run .* here: the moon is full"):
            prepare(language_model, **settings)


@pytest.mark.parametrize("engine", ["auto", "vllm"])
def test_vllm_runs_what_turbomind_does_not(
    language_model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    engine: str,
) -> None:
    monkeypatch.setattr(selection, "turbomind_unsupported_reason", lambda *_: "the moon is full")
    monkeypatch.setattr(selection, "vllm_unsupported_reason", lambda *_: None)
    config = None if engine == "auto" else {"max_num_seqs": 4}
    with caplog.at_level(logging.INFO):
        made: Any = prepare(language_model, engine, config=config).start(tokenizer)
    assert isinstance(made, FakeVllm)
    assert made.settings["view"] == Path("the view")
    assert made.settings["config"] is config
    assert "runs on vLLM" in caplog.text


def test_a_requested_vllm_is_never_replaced(language_model: LanguageModel) -> None:
    for settings in ({"engine": "vllm"}, {"config": VllmsConfig()}):
        with pytest.raises(EngineUnavailableError, match=r"vLLM cannot run .*: the sun is low"):
            prepare(language_model, **settings)


def test_a_view_that_fails_is_an_error_and_no_other_engine(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeViews, *_: Any, **__: Any) -> Path:
        raise ViewError("the disk is too small")

    monkeypatch.setattr(FakeViews, "get", fail)
    with pytest.raises(ViewError, match="disk is too small"):
        prepare(language_model)


def test_settings_choose_their_engine(language_model: LanguageModel) -> None:
    embedded = prepare(language_model, config=TransformersEngineConfig())
    assert embedded.engine is TransformersEngine
    given = LmdeploysConfig()
    start = prepare(language_model, config=given)
    assert start.engine is FakeTurbomind
    assert start.settings["config"] is given


@pytest.mark.parametrize(
    ("engine", "config", "message"),
    [
        ("magic", None, "engine must be one of auto, turbomind, vllm, transformers; it is 'magic'"),
        ("auto", object(), "TransformersEngineConfig, lmdeploy's .* or vLLM's AsyncEngineArgs"),
        ("turbomind", TransformersEngineConfig(), "TurbomindEngineConfig with engine='turbomind'"),
        ("turbomind", VllmsConfig(), "TurbomindEngineConfig with engine='turbomind'"),
        ("turbomind", {"max_num_seqs": 4}, "TurbomindEngineConfig with engine='turbomind'"),
        ("auto", {"max_num_seqs": 4}, "with engine='auto', not dict"),
        ("vllm", LmdeploysConfig(), "vLLM's AsyncEngineArgs, or a dict .*, not LmdeploysConfig"),
        ("vllm", {"model": "other"}, "engine_config must not set model='other'"),
        ("transformers", LmdeploysConfig(), "a TransformersEngineConfig .*, not LmdeploysConfig"),
    ],
)
def test_an_unknown_engine_or_the_settings_of_another_are_refused(
    language_model: LanguageModel, engine: str, config: object, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        prepare(language_model, engine, config=config)


def test_a_device_that_lmdeploys_settings_do_not_list_is_an_error(
    language_model: LanguageModel,
) -> None:
    second = torch.device("cuda", 1)
    with pytest.raises(OptionError, match=re.escape("TurbomindEngineConfig(devices=[1])")):
        prepare(language_model, device=second, config=LmdeploysConfig())
    prepare(language_model, device=second, config=LmdeploysConfig([0]))
    prepare(language_model, device=second)


def test_an_engine_without_a_required_feature_is_not_selected(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(language_model, "requires", frozenset({"mrope"}), raising=False)
    with pytest.raises(
        EngineUnavailableError,
        match=r"TurboMind cannot run .* it lacks mrope: .* use engine='transformers'",
    ):
        prepare(language_model, "turbomind")
    with caplog.at_level(logging.INFO):
        assert prepare(language_model).engine is TransformersEngine
    assert "does not run on TurboMind: it lacks mrope" in caplog.text
    monkeypatch.setattr(TransformersEngine, "offers", frozenset({"deepstack"}))
    with pytest.raises(
        EngineUnavailableError,
        match=r"transformers engine cannot run .*lacks mrope.*offers deepstack; no engine",
    ):
        prepare(language_model, device=CPU)


def test_an_unknown_feature_is_refused(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "requires", frozenset({"telepathy"}), raising=False)
    with pytest.raises(PluginContractError, match=r"requires .*telepathy"):
        prepare(language_model)
