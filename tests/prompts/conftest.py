"""Tokenizers that the tests of prompts share."""

from __future__ import annotations

import pytest
from tokenizer_kinds import (
    KINDS,
    sentencepiece,
)
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = KINDS[request.param]()
    return made


@pytest.fixture(scope="module")
def llava() -> PreTrainedTokenizerBase:
    return sentencepiece("tokenization_llava")


@pytest.fixture(scope="module")
def nobos() -> PreTrainedTokenizerBase:
    return sentencepiece("tokenization_nobos")
