"""Images and text of the plugins on vLLM, compared with the embedded engine in float32."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from large_heads import FAMILIES, write_checkpoint
from PIL import Image

import vlcore
from vlcore.engines.vllm.engine import VllmEngine

DEMO = Path(__file__).parents[2] / "demo"
RED = Image.new("RGB", (60, 40), "red")
BLUE = Image.new("RGB", (40, 50), "blue")
PROMPTS: list[Any] = ["Hello", ("What is this?", RED), ("Compare them.", [RED, BLUE])]
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
EAGER = {"enforce_eager": True}


@pytest.fixture(autouse=True)
def _views(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLCORE_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_the_demo_gives_the_embedded_engines_answers(caplog: pytest.LogCaptureFixture) -> None:
    asked = [
        (question, DEMO / "images" / name)
        for name, questions in json.loads((DEMO / "images" / "questions.json").read_text()).items()
        for question in questions
    ]
    with vlcore.pipeline(DEMO / "tiny-llava", engine="transformers", **OPTIONS) as pipe:
        expected = [one.text for one in pipe(asked, {"max_new_tokens": 40})]
    with (
        caplog.at_level(logging.INFO),
        vlcore.pipeline(DEMO / "tiny-llava", **OPTIONS) as pipe,  # compiled, as by default
    ):
        assert isinstance(pipe.engine, VllmEngine)
        answers = pipe(asked, {"max_new_tokens": 40, "logprobs": 1})
        streamed = [chunk.text for chunk in pipe.stream_infer(asked[:1], {"max_new_tokens": 40})]
    assert [one.text for one in answers] == expected
    assert "".join(streamed) == expected[0]
    assert "does not run on TurboMind" in caplog.text
    assert "runs on vLLM, cpu" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_plugin_runs_on_vllm(family: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(family, tmp_path / family, torch.float32)
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "logprobs": 0}
    prompts = PROMPTS[: 2 if family == "yi" else 3]
    with vlcore.pipeline(checkpoint, engine="transformers", **OPTIONS) as pipe:
        expected = pipe(prompts, options)
    with vlcore.pipeline(checkpoint, engine="vllm", engine_config=EAGER, **OPTIONS) as pipe:
        answers = pipe(prompts, options)
    for mine, other in zip(answers, expected, strict=True):
        assert mine.token_ids == other.token_ids
        assert mine.text == other.text
        for token_id, values, wanted in zip(
            other.token_ids, mine.logprobs, other.logprobs, strict=True
        ):
            assert values[token_id] == pytest.approx(wanted[token_id], abs=2e-3)
