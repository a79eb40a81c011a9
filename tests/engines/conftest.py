"""A tiny text model, and the embedded engine that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from checkpoints import write_llava
from engine_requests import CPU
from transformers import PreTrainedTokenizerBase

from vlcore.engines.transformers.engine import TransformersEngine
from vlcore.language.model import LanguageModel
from vlcore.plugins.stages import load_language_model


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language_model(write_llava(tmp_path_factory.mktemp("model") / "llava"))


@pytest.fixture(scope="module")
def tokenizer(language_model: LanguageModel) -> PreTrainedTokenizerBase:
    return language_model.tokenizer()


@pytest.fixture
def engine(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[TransformersEngine]:
    made = TransformersEngine(language_model, tokenizer, device=CPU, dtype=torch.float32)
    yield made
    asyncio.run(made.close())
