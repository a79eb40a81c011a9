"""Makes lmdeploy importable on a machine without CUDA, and starts its engine on a stand-in."""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import stub_libraries
import torch
from checkpoints import write_llava

from vlcore.engines.turbomind.engine import TurbomindEngine
from vlcore.language.model import LanguageModel
from vlcore.plugins.stages import load_language_model

if TYPE_CHECKING:
    from turbomind_stand_in import Communicator

_SPEC = importlib.util.find_spec("lmdeploy")

if _SPEC is not None and _SPEC.origin is not None:
    if not torch.cuda.is_available():
        (extension,) = (Path(_SPEC.origin).parent / "turbomind").glob("_turbomind*.so")
        with tempfile.TemporaryDirectory() as directory:
            try:
                stub_libraries.preload(stub_libraries.build(extension, Path(directory)))
            except stub_libraries.MissingToolError as error:
                pytest.exit(str(error), returncode=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 128}
"""TurboMind has kernels for heads of 64 numbers."""


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    directory = tmp_path_factory.mktemp("turbomind") / "llava"
    return load_language_model(write_llava(directory, **HEADS))


@pytest.fixture(scope="session")
def view(language_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model.write_view(tmp_path_factory.mktemp("view") / "llava")


@pytest.fixture(scope="session")
def communicators(view: Path) -> Iterator[list[Communicator]]:
    from turbomind_stand_in import on_cpu

    with on_cpu(view) as made:
        yield made


@pytest.fixture
def engine(
    language_model: LanguageModel, view: Path, communicators: list[Communicator]
) -> Iterator[TurbomindEngine]:
    """TurboMind without its self-test, so that nothing was asked yet."""
    made = TurbomindEngine(
        language_model,
        language_model.tokenizer(),
        view,
        device=torch.device("cuda", 0),
        dtype=torch.bfloat16,
        self_test=False,
    )
    yield made
    asyncio.run(made.close())


@pytest.fixture
def communicator(
    engine: TurbomindEngine, communicators: list[Communicator]
) -> Iterator[Communicator]:
    """What the engine asks; nothing that C++ does not check may arrive there."""
    yield communicators[-1]
    assert communicators[-1].faults == []
