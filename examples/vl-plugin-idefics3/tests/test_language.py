"""The language model, with an output layer of its own or the embedding's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import vlcore


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_transformers(write: Callable[..., Path], tied: bool) -> None:
    checkpoint = write("idefics3", tie_word_embeddings=tied)
    stored = vlcore.Checkpoint.open(checkpoint).tensor_names
    assert ("lm_head.weight" in stored) is not tied
    token_ids = torch.arange(20)[None]
    oracle: Any = AutoModelForImageTextToText.from_pretrained(checkpoint)
    model = vlcore.load_language_model(checkpoint).to_transformers()
    with torch.inference_mode():
        torch.testing.assert_close(model(token_ids).logits, oracle(token_ids).logits)
