"""``pipeline()`` with TurboMind: its selection, the order of loading, and the devices of images."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from large_heads import write_checkpoint
from PIL import Image

import vlcore
from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.errors import EngineUnavailableError, PluginContractError
from vlcore.language.model import LanguageModel
from vlcore.language.view_cache import ViewCache
from vlcore.plugins.stages import ModelStages, load_language_model

if importlib.util.find_spec("lmdeploy") is None:
    pytest.skip("lmdeploy is not installed: make test-turbomind", allow_module_level=True)

if TYPE_CHECKING:
    from turbomind_stand_in import Communicator

RED = Image.new("RGB", (60, 40), "red")
DEVICES: dict[str, Any] = {"device": "cuda", "vision_devices": ["cpu"], "dtype": "float16"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("llava", tmp_path_factory.mktemp("pipeline") / "llava")


@pytest.fixture(autouse=True)
def communicators(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Communicator]]:
    from turbomind_stand_in import on_cpu

    monkeypatch.setenv("VLCORE_CACHE", str(checkpoint.parent / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with on_cpu(ViewCache().get(load_language_model(checkpoint))) as made:
        yield made


@pytest.mark.parametrize("engine", ["auto", "turbomind"])
def test_turbomind_is_selected_where_it_is_supported(
    checkpoint: Path,
    communicators: list[Communicator],
    caplog: pytest.LogCaptureFixture,
    engine: str,
) -> None:
    with (
        caplog.at_level(logging.INFO),
        vlcore.pipeline(checkpoint, engine=engine, **DEVICES) as pipe,
    ):
        assert isinstance(pipe.engine, TurbomindEngine)
        answer = pipe(("What is this?", RED), {"max_new_tokens": 3, "ignore_eos": True})
    assert answer.generate_token_len == 3
    assert "runs on TurboMind, cuda" in caplog.text
    assert communicators[-1].faults == []


def test_the_vision_model_is_loaded_before_turbomind_allocates_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def note(owner: type, name: str, what: str) -> None:
        inner = getattr(owner, name)

        def noting(self: Any, *values: Any, **options: Any) -> Any:
            events.append(what)
            return inner(self, *values, **options)

        monkeypatch.setattr(owner, name, noting)

    note(ViewCache, "get", "the view")
    note(ModelStages, "vision_model", "the vision model")
    note(TurbomindEngine, "_load", "TurboMind")
    vlcore.pipeline(checkpoint, **DEVICES).close()
    assert events == ["the view", "the vision model", "TurboMind"]


def test_embeddings_are_copied_to_the_host_once(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlcore.vision.encoder import ImageEncoder

    options: dict[str, Any] = {}
    made = ImageEncoder.__init__

    def note(self: ImageEncoder, models: Any, **settings: Any) -> None:
        options.update(settings)
        made(self, models, **settings)

    monkeypatch.setattr(ImageEncoder, "__init__", note)
    vlcore.pipeline(checkpoint, **DEVICES).close()
    assert options["rows_device"] == "cpu"


def test_a_vision_model_of_another_width_is_an_error_before_turbomind_starts(
    checkpoint: Path, communicators: list[Communicator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "hidden_size", 512)
    with pytest.raises(PluginContractError, match=r"width 256.*expects 512"):
        vlcore.pipeline(checkpoint, engine="turbomind", **DEVICES)
    assert communicators == []


def test_turbomind_that_cannot_start_is_an_error_in_auto_too(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import turbomind_stand_in as stand_in

    def fail(self: Any, device: int) -> None:
        raise RuntimeError("CUDA runtime error: out of memory")

    monkeypatch.setattr(stand_in.Communicator, "create_engine", fail)
    with pytest.raises(EngineUnavailableError, match=r"cannot start on .*out of memory"):
        vlcore.pipeline(checkpoint, engine="auto", **DEVICES)
