from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_json, write_llava

from vlcore import Checkpoint, CheckpointNotFoundError, ConfigError
from vlcore.flat_layout import FlatLanguageModel, FlatVisionPart


def change(directory: Path, **values: Any) -> Checkpoint:
    content = json.loads((directory / "config.json").read_text()) | values
    kept = {key: value for key, value in content.items() if value is not ...}
    write_json(directory / "config.json", kept)
    return Checkpoint.open(directory)


def language_model(checkpoint: Checkpoint) -> FlatLanguageModel:
    return FlatLanguageModel.read(checkpoint, model_type="llama", architecture="LlamaForCausalLM")


def test_the_vision_settings_are_read(tmp_path: Path) -> None:
    checkpoint = change(
        write_llava(tmp_path), mm_vision_select_layer=1, mm_vision_select_feature="cls_patch"
    )
    part = FlatVisionPart.read(checkpoint)
    assert (part.layer, part.keep_class_token, part.aspect) == (1, True, "pad")
    assert (part.hidden_size, part.source.config.hidden_size) == (64, 48)


def test_absent_keys_have_defaults(tmp_path: Path) -> None:
    keys = ("image_aspect_ratio", "mm_vision_select_layer", "mm_vision_select_feature")
    checkpoint = change(write_llava(tmp_path), mm_hidden_size=..., **dict.fromkeys(keys, ...))
    part = FlatVisionPart.read(checkpoint)
    assert (part.layer, part.keep_class_token, part.aspect) == (-2, False, "square")


def test_a_plugin_may_support_more_ways_to_make_an_image_square(tmp_path: Path) -> None:
    checkpoint = change(write_llava(tmp_path), image_aspect_ratio="stretch")
    assert FlatVisionPart.read(checkpoint, aspects=("stretch",)).aspect == "stretch"
    with pytest.raises(ConfigError, match=r"image_aspect_ratio in .* is 'stretch'; known: square,"):
        FlatVisionPart.read(checkpoint)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mm_vision_tower": ...}, "mm_vision_tower must name the vision encoder; it is None"),
        ({"mm_vision_tower": 3}, "mm_vision_tower must name the vision encoder; it is 3"),
        ({"mm_vision_select_layer": "last"}, "mm_vision_select_layer must be an integer"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature in .* is 'all'; known: p"),
        ({"mm_hidden_size": 50}, "mm_hidden_size is 50, but .*'clip' is 48"),
        ({"hidden_size": ...}, "hidden_size must be an integer; it is None"),
    ],
    ids=str,
)
def test_impossible_vision_settings_are_reported(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    checkpoint = change(write_llava(tmp_path, mm_vision_tower="clip"), **values)
    with pytest.raises(ConfigError, match=message) as caught:
        FlatVisionPart.read(checkpoint)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_encoder_is_reported(tmp_path: Path) -> None:
    checkpoint = change(write_llava(tmp_path), mm_vision_tower="./gone")
    with pytest.raises(CheckpointNotFoundError, match=r"refers to '\./gone'"):
        FlatVisionPart.read(checkpoint)


def test_the_language_model_has_its_own_settings_and_names(tmp_path: Path) -> None:
    model = language_model(Checkpoint.open(write_llava(tmp_path)))
    assert model.architecture == "LlamaForCausalLM"
    assert model.config["model_type"] == "llama"
    assert model.config["intermediate_size"] == 96
    assert not [key for key in model.config if key.startswith(("mm_", "image_"))]
    assert all(name == source.name for name, source in model.tensors.items())
    assert not [name for name in model.tensors if "mm_" in name or "vision" in name]
    assert model.to_transformers().config.vocab_size == 700


def test_missing_keys_of_the_language_model_are_reported(tmp_path: Path) -> None:
    checkpoint = change(write_llava(tmp_path), vocab_size=..., num_hidden_layers=...)
    with pytest.raises(ConfigError, match="lacks num_hidden_layers, vocab_size, which describe"):
        language_model(checkpoint)


def test_the_tokenizer_splits_as_sentencepiece_does(tmp_path: Path) -> None:
    tokenizer = language_model(Checkpoint.open(write_llava(tmp_path))).tokenizer()
    tokens = tokenizer.tokenize(" an image")
    assert "".join(tokens) == "▁▁an▁image"
