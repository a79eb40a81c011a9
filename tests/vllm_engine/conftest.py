"""Starts vLLM on tiny models. Each engine takes some ten seconds to start, and is shared."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_llava
from transformers import PreTrainedTokenizerBase

from vlcore.engines.vllm.engine import VllmEngine
from vlcore.language.model import LanguageModel
from vlcore.plugins.stages import load_language_model

# In its own processes, vLLM would bind threads to processors that other tests use too.
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.v1.engine.async_llm  # noqa: F401  (warns of its own use of libraries)

HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
"""vLLM has kernels for heads of 32 numbers on a CPU."""
SETTINGS: dict[str, Any] = {"enforce_eager": True}
"""Compilation would take longer than the tests."""
CPU = torch.device("cpu")
Start = Callable[..., VllmEngine]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(write_llava(tmp_path_factory.mktemp("vllm") / "llava", **HEADS))


@pytest.fixture(scope="session")
def tokenizer(language_model: LanguageModel) -> PreTrainedTokenizerBase:
    return language_model.tokenizer()


@pytest.fixture(scope="session")
def view(language_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model.write_view(tmp_path_factory.mktemp("view") / "llava")


@pytest.fixture(scope="session")
def start(language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase, view: Path) -> Start:
    """Start vLLM on the tiny model, with fields of ``AsyncEngineArgs``."""

    def start(view: Path = view, self_test: bool = True, **fields: Any) -> VllmEngine:
        return VllmEngine(
            language_model,
            tokenizer,
            view,
            device=CPU,
            dtype=torch.float32,
            config=SETTINGS | fields,
            self_test=self_test,
        )

    return start


@pytest.fixture(scope="session")
def engine(start: Start) -> Iterator[VllmEngine]:
    made = start()
    yield made
    asyncio.run(made.close())
