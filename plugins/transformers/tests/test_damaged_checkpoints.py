"""A damaged or unusual checkpoint is refused with its file or value, or answers all the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers_families.checkpoints import write_checkpoint
from transformers_families.conversations import WIDE, user

import vlcore
from vlcore import CheckpointError, ConfigError, EngineUnavailableError, ImageError, VlcoreError

pytestmark = pytest.mark.slow

PLUGIN = "vl-plugin-transformers"
PIXELS = "preprocessor_config.json"
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("intact") / "model", "qwen2_vl").directory


@pytest.fixture
def checkpoint(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "model"))


def answer(directory: Path) -> list[int]:
    """Return the tokens of an answer about an image."""
    with vlcore.pipeline(
        directory, plugin=PLUGIN, engine="transformers", device="cpu", dtype="float32"
    ) as pipe:
        return list(pipe([user(WIDE, "What is this?")], {"max_new_tokens": 4}).token_ids)


def remove(name: str) -> Damage:
    """Return a function that removes a file."""
    return lambda directory: (directory / name).unlink()


def write(name: str, text: str) -> Damage:
    """Return a function that replaces the text of a file."""

    def apply(directory: Path) -> None:
        (directory / name).write_text(text)

    return apply


def change(name: str, *keys: str, value: Any) -> Damage:
    """Return a function that sets a value in a JSON file; ``None`` removes it."""

    def apply(directory: Path) -> None:
        values = json.loads((directory / name).read_text())
        inner = values
        for key in keys[:-1]:
            inner = inner[key]
        if value is None:
            inner.pop(keys[-1], None)
        else:
            inner[keys[-1]] = value
        (directory / name).write_text(json.dumps(values))

    return apply


@pytest.mark.parametrize(
    ("damage", "error", "fragment"),
    [
        (remove(PIXELS), ConfigError, "does not state how images are preprocessed"),
        (write(PIXELS, "{"), ConfigError, "not readable JSON"),
        (write(PIXELS, "[]"), ConfigError, "must hold a JSON object"),
        (change(PIXELS, "size", value="big"), ConfigError, PIXELS),
        (change(PIXELS, "patch_size", value=0), ImageError, "image 1 of 1"),
        (change(PIXELS, "image_mean", value=[0.5]), ImageError, "mean must have 3 elements"),
        (remove("tokenizer.json"), CheckpointError, "has no tokenizer"),
        (remove("chat_template.jinja"), ConfigError, "has no chat template"),
        (write("chat_template.jinja", "{% for"), VlcoreError, "chat template"),
        (
            change("config.json", "image_token_id", value=5),
            ConfigError,
            "the processor writes none",
        ),
        (change("config.json", "text_config", value="x"), ConfigError, "text_config"),
        (change("config.json", "vision_config", "depth", value=10**5), ConfigError, "depth"),
        (
            change("config.json", "quantization_config", value={"quant_method": "awq"}),
            EngineUnavailableError,
            "quantised (awq)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_named(
    checkpoint: Path, damage: Damage, error: type[VlcoreError], fragment: str
) -> None:
    damage(checkpoint)
    with pytest.raises(error) as raised:
        answer(checkpoint)
    assert fragment in str(raised.value)


@pytest.mark.parametrize(
    "difference",
    [
        remove("processor_config.json"),
        change(PIXELS, "image_processor_type", value="Qwen2VLImageProcessorFast"),
        change("config.json", "tie_word_embeddings", value=None),
        change("config.json", "auto_map", value={"AutoModel": "modeling.Other"}),
    ],
    ids=["no processor_config.json", "fast image processor", "untied by default", "remote code"],
)
def test_a_difference_that_does_not_matter(
    intact: Path, checkpoint: Path, difference: Damage
) -> None:
    expected = answer(intact)
    difference(checkpoint)
    assert answer(checkpoint) == expected


def test_settings_of_the_image_processor_are_read_from_either_file(
    intact: Path, checkpoint: Path
) -> None:
    images = json.loads((checkpoint / PIXELS).read_text())
    change("processor_config.json", "image_processor", value=images)(checkpoint)
    (checkpoint / PIXELS).unlink()
    assert answer(checkpoint) == answer(intact)
