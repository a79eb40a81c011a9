"""Options of an image, and configurations that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlcore

IMAGE = Image.new("RGB", (100, 60), "red")


def test_low_detail_shows_only_the_whole(checkpoint: Path) -> None:
    with vlcore.pipeline(checkpoint) as pipe:
        lengths = []
        for detail in ("high", "low"):
            image = {"type": "image", "image": IMAGE, "detail": detail}
            message = {"role": "user", "content": [image, {"type": "text", "text": "What?"}]}
            lengths.append(pipe([message], {"max_new_tokens": 1}).input_token_len)
    # Six tiles of 4 rows and two tokens; a line break after each line and one before the whole.
    tokenizer = vlcore.load_language_model(checkpoint).tokenizer()
    two_breaks = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    assert lengths[0] - lengths[1] == 6 * (4 + 2) + 1 + len(two_breaks)


def test_another_detail_is_refused(checkpoint: Path) -> None:
    model = vlcore.load_vision_model(checkpoint)
    with pytest.raises(vlcore.OptionError, match="detail must be 'high' or 'low'; it is 'medium'"):
        model.preprocess(IMAGE, detail="medium")
    with pytest.raises(TypeError):
        model.preprocess(IMAGE, edge=3)


def test_settings_among_those_of_the_processor(write: Callable[..., Path]) -> None:
    """As transformers writes them since version 5."""
    checkpoint = write("smolvlm")
    expected = vlcore.load_vision_model(checkpoint).preprocess(IMAGE)
    own = checkpoint / "preprocessor_config.json"
    settings = {"image_processor": json.loads(own.read_text("utf-8")), "image_seq_len": 4}
    own.unlink()
    (checkpoint / "processor_config.json").write_text(json.dumps(settings), "utf-8")
    inputs = vlcore.load_vision_model(checkpoint).preprocess(IMAGE)
    assert inputs.layout == expected.layout == (2, 3)
    assert inputs.pixels.equal(expected.pixels)


def test_absent_settings(write: Callable[..., Path]) -> None:
    checkpoint = write("smolvlm")
    (checkpoint / "preprocessor_config.json").unlink()
    with pytest.raises(vlcore.ConfigError, match=r"has neither preprocessor_config\.json nor"):
        vlcore.load_vision_model(checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_factor": "two"}, "scale_factor"),
        ({"scale_factor": 3}, "tiles of 4 x 4 patches, which its scale_factor of 3 does not"),
    ],
)
def test_an_impossible_configuration_is_refused(
    write: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    path = write("smolvlm") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(vlcore.ConfigError, match=message):
        vlcore.load_vision_model(path.parent)
