from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_json
from internvl import write_intern
from PIL import Image

from vlcore import Checkpoint, Control, Rows
from vlcore.errors import ConfigError, ImageError, PluginError
from vlcore.processors import ImageRuns, PromptImageProcessor, load_processor

IMAGE = Image.new("RGB", (200, 60), "red")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_intern(tmp_path / "model")


def change(checkpoint: Path, file: str, values: Mapping[str, Any]) -> Checkpoint:
    path = checkpoint / file
    write_json(path, json.loads(path.read_text("utf-8")) | values)
    return Checkpoint.open(checkpoint)


def test_an_image_gives_tensors_and_the_content_of_its_slot(checkpoint: Path) -> None:
    process = PromptImageProcessor(Checkpoint.open(checkpoint))
    tensors, runs = process(IMAGE.convert("L"))
    assert list(tensors) == ["pixel_values"]
    assert list(tensors["pixel_values"].shape) == [4, 3, 28, 28]
    assert runs == ImageRuns(("<img>", 16, "</img>"))
    assert runs.num_rows == 16
    assert runs.parts() == (Control("<img>"), Rows(16), Control("</img>"))
    assert process.image_token == "<IMG_CONTEXT>"


def test_an_image_that_the_processor_refuses_is_an_error_of_vlcore(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = PromptImageProcessor(Checkpoint.open(checkpoint))

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("absolute aspect ratio must be smaller than 200")

    monkeypatch.setattr(process.processor, "_process_images", refuse)
    with pytest.raises(ImageError, match="200 x 60 pixels: absolute aspect ratio"):
        process(IMAGE)


def test_several_threads_share_a_processor(checkpoint: Path) -> None:
    process = PromptImageProcessor(Checkpoint.open(checkpoint))
    expected, runs = process(IMAGE)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(process, [IMAGE] * 16))
    for tensors, other in results:
        assert other == runs
        assert torch.equal(tensors["pixel_values"], expected["pixel_values"])


def test_settings_of_an_older_checkpoint_are_in_a_file_of_their_own(checkpoint: Path) -> None:
    own = checkpoint / "processor_config.json"
    settings = json.loads(own.read_text("utf-8"))
    write_json(checkpoint / "preprocessor_config.json", settings.pop("image_processor"))
    write_json(own, settings)
    processor = load_processor(Checkpoint.open(checkpoint))
    assert processor.image_processor.max_patches == 4
    assert processor.image_seq_length == 4


def test_the_default_of_the_class_states_the_image_token(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    config = json.loads(path.read_text("utf-8"))
    del config["image_token_id"]
    write_json(path, config)
    with pytest.raises(ConfigError, match="row_token is '<nowhere>'"):
        PromptImageProcessor(Checkpoint.open(checkpoint), row_token="<nowhere>")
    process = PromptImageProcessor(Checkpoint.open(checkpoint))  # the id is that of InternVL
    assert process(IMAGE)[1].num_rows == 0
    named = PromptImageProcessor(Checkpoint.open(checkpoint), row_token="<IMG_CONTEXT>")
    assert named(IMAGE)[1].num_rows == 16


def test_a_checkpoint_without_settings_is_refused(checkpoint: Path) -> None:
    (checkpoint / "processor_config.json").unlink()
    with pytest.raises(ConfigError, match="does not state how images are preprocessed"):
        load_processor(Checkpoint.open(checkpoint))


@pytest.mark.parametrize(
    ("config", "settings", "error", "message"),
    [
        ({"model_type": "unknown"}, {"processor_class": "Nothing"}, ConfigError, "no processor"),
        (
            {"model_type": "unknown"},
            {"image_processor": {"image_processor_type": "Nothing"}},
            ConfigError,
            "no image processor 'Nothing'",
        ),
        ({"model_type": ["list"]}, {"processor_class": "Nothing"}, ConfigError, "no processor"),
        ({}, {"image_processor": {"size": "large"}}, ConfigError, "cannot build InternVLProcessor"),
    ],
)
def test_settings_that_transformers_cannot_use_are_refused(
    checkpoint: Path,
    config: dict[str, Any],
    settings: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    change(checkpoint, "config.json", config)
    opened = change(checkpoint, "processor_config.json", settings)
    with pytest.raises(error, match=message):
        load_processor(opened)


def test_a_package_that_is_missing_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dummy:
        is_dummy = True

    monkeypatch.setattr("vlcore.processors.transformers.InternVLProcessor", Dummy, raising=False)
    with pytest.raises(PluginError, match="InternVLProcessor, needs a package"):
        load_processor(Checkpoint.open(checkpoint))
