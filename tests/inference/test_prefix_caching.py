"""What prompts of a pipeline reuse of each other: the key of an image is that of its content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llava
from PIL import Image

from vlcore.engines.transformers.config import TransformersEngineConfig
from vlcore.inference.factory import pipeline
from vlcore.inference.pipeline import Pipeline

OPTIONS = {"max_new_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("prefixes") / "llava")


@pytest.fixture
def pipe(checkpoint: Path) -> Iterator[Pipeline]:
    with pipeline(checkpoint, device="cpu", dtype="float32") as made:
        yield made


@pytest.fixture(scope="module")
def uncached(checkpoint: Path) -> Iterator[Pipeline]:
    settings = TransformersEngineConfig(prefix_caching=False)
    with pipeline(checkpoint, device="cpu", dtype="float32", engine_config=settings) as made:
        yield made


def test_the_next_turn_of_a_session_reuses_the_turns_before(
    pipe: Pipeline, uncached: Pipeline
) -> None:
    image = Image.new("RGB", (50, 30), "red")
    sessions = [
        model.chat("And now?", model.chat(("hello", image), gen_config=OPTIONS), gen_config=OPTIONS)
        for model in (pipe, uncached)
    ]
    cached, without = (session.response for session in sessions)
    assert cached is not None
    assert without is not None
    assert cached.text == without.text
    assert without.cached_tokens == 0
    assert cached.image_token_len < cached.cached_tokens < cached.input_token_len


def test_files_with_one_name_that_differ_in_one_pixel_share_nothing_of_the_image(
    pipe: Pipeline, uncached: Pipeline, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    image = Image.new("RGB", (30, 30), "red")
    image.save(path)
    first = pipe(("hello", str(path)), OPTIONS)
    assert first.cached_tokens == 0
    again = pipe(("hello", str(path)), OPTIONS)
    assert again.cached_tokens == again.input_token_len - 1
    num_others = again.input_token_len - again.image_token_len
    image.putpixel((15, 15), (0, 0, 255))
    image.save(path)
    changed = pipe(("hello", str(path)), OPTIONS)
    assert changed.cached_tokens < num_others
    assert changed == uncached(("hello", str(path)), OPTIONS)
    same = pipe(("hello", image), OPTIONS)  # the same content from elsewhere
    assert same.cached_tokens == again.input_token_len - 1


def test_one_image_under_two_options_shares_nothing_of_the_image(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = pipe._runner.encoder
    kind = type(encoder.vision_model)
    preprocess = kind.preprocess

    def with_shade(self: Any, image: Image.Image, shade: int = 0) -> Any:
        shaded = image.point(lambda value: max(0, value - shade))
        return preprocess(self, shaded)

    monkeypatch.setattr(kind, "image_options", frozenset({"shade"}))
    monkeypatch.setattr(kind, "preprocess", with_shade)
    image = Image.new("RGB", (30, 30), "white")

    def ask(shade: int) -> tuple[int, tuple[int, ...]]:
        content = [
            {"type": "text", "text": "hello"},
            {"type": "image", "image": image, "shade": shade},
        ]
        response = pipe([{"role": "user", "content": content}], OPTIONS)
        num_others = response.input_token_len - response.image_token_len
        return response.cached_tokens - num_others, response.token_ids

    light, dark = ask(0), ask(250)
    assert light[0] < 0
    assert dark[0] < 0
    assert ask(0)[0] > 0
    assert ask(250) == (ask(0)[0], dark[1])
    assert dark[1] != light[1]


def test_images_of_equal_content_are_shared_after_they_left_the_cache_of_embeddings(
    checkpoint: Path,
) -> None:
    image = Image.new("RGB", (30, 30), "red")
    with pipeline(checkpoint, device="cpu", cache_bytes=0) as pipe:
        pipe(("hello", image), OPTIONS)
        assert pipe(("hello", image), OPTIONS).cached_tokens > 0
