from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_json, write_llava
from golden_cases import GOLDEN
from llava_vision import (
    ANYRES,
    TOWER,
    load,
    moved_tower,
    rewrite,
    set_json,
)
from torch import Tensor
from weight_files import single_safetensors

from vlcore import (
    ConfigError,
    NoPluginError,
    TensorError,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_aspect_ratio": "stretch"}, "image_aspect_ratio in .* is 'stretch'; known: square"),
        ({"mm_patch_merge_type": "maxpool"}, "mm_patch_merge_type in .* is 'maxpool'; known: flat"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature in .* is 'all'; known: pa"),
        ({"mm_vision_select_layer": 4}, "hidden state 4 of the vision encoder is requested, wh"),
        ({"mm_vision_select_layer": -5}, "hidden state -5 of the vision encoder is requested"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer .* integer"),
        ({"mm_vision_select_layer": "last"}, "mm_vision_select_layer .* integer"),
        ({"hidden_size": None}, "hidden_size .* integer"),
        (ANYRES | {"image_grid_pinpoints": "(1x1)"}, "image_grid_pinpoints must be a list of pai"),
        (ANYRES | {"image_grid_pinpoints": []}, "image_grid_pinpoints must be a list of pairs"),
        (
            ANYRES | {"image_grid_pinpoints": [[28, 30]]},
            r"\(28, 30\) is not a multiple of the encoder's",
        ),
        (ANYRES | {"mm_vision_select_feature": "cls_patch"}, "tiles with a class token cannot be"),
        (ANYRES | {"image_aspect_ratio": ["anyres"]}, "image_aspect_ratio in .* is .'anyres'.; kn"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_reported(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_llava(tmp_path)
    set_json(tmp_path / "config.json", **change)
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projector_hidden_act": "relu"}, "projector_hidden_act in .* is 'relu'; known: gelu"),
        (
            {"vision_feature_layer": [-2, -1]},
            r"one vision_feature_layer is supported, not \[-2, -1",
        ),
        ({"vision_feature_layer": -9}, "hidden state -9 of the vision encoder is requested"),
        (
            {"vision_feature_select_strategy": "cls"},
            "vision_feature_select_strategy in .* is 'cls'",
        ),
    ],
    ids=str,
)
def test_an_hf_config_that_cannot_be_is_reported(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(GOLDEN / "llava15_hf", tmp_path, dirs_exist_ok=True)
    set_json(tmp_path / "config.json", **change)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_an_unknown_activation_is_reported(tmp_path: Path) -> None:
    write_llava(tmp_path)
    config = tmp_path / "clip" / "config.json"
    content = json.loads(config.read_text())
    content["vision_config"]["hidden_act"] = "relu"
    write_json(config, content)
    with pytest.raises(ConfigError, match="hidden_act 'relu'; known: quick_gelu, gelu"):
        load(tmp_path)


def test_a_tower_that_is_no_clip_is_reported(tmp_path: Path) -> None:
    write_llava(tmp_path)
    write_json(tmp_path / "clip" / "config.json", {"model_type": "siglip_vision_model"})
    with pytest.raises(NoPluginError, match="its vision encoder 'clip' is a 'siglip_vision_model'"):
        load(tmp_path)


def test_an_unknown_projector_is_not_matched(tmp_path: Path) -> None:
    write_llava(tmp_path, mm_projector_type="mlp2x_relu")
    with pytest.raises(NoPluginError, match="its projector 'mlp2x_relu' is none of linear"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            f"{TOWER}encoder.layers.0.mlp.fc1.bias",
            r"lacks 1 .*: model\.vision_tower\..*encoder\.layers\.0\.mlp\.fc1\.bias",
        ),
        ("model.mm_projector.2.weight", r"lacks 1 tensor\(s\): model\.mm_projector\.2\.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str, message: str) -> None:
    rewrite(write_llava(tmp_path), lambda tensors: tensors.pop(name))
    with pytest.raises(TensorError, match=message):
        load(tmp_path)


def test_a_missing_newline_row_is_named(tmp_path: Path) -> None:
    write_llava(tmp_path, **ANYRES)
    rewrite(tmp_path, lambda tensors: tensors.pop("model.image_newline"))
    with pytest.raises(TensorError, match=r"lacks 1 tensor\(s\): model\.image_newline"):
        load(tmp_path)


def test_a_tower_without_weights_anywhere_is_reported(tmp_path: Path) -> None:
    moved_tower(write_llava(tmp_path))
    with pytest.raises(TensorError, match=r"clip holds no weights"):
        load(tmp_path)
    single_safetensors(tmp_path / "clip", {"something.else": torch.zeros(1)})
    with pytest.raises(TensorError, match=r"neither .* nor the vision encoder .* holds CLIP"):
        load(tmp_path)


def test_misshapen_tensors_are_named(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.mm_projector.0.weight"] = torch.zeros(64, 50)

    rewrite(write_llava(tmp_path), change)
    with pytest.raises(TensorError, match=r"model\.mm_projector\.0\.weight gives \[64, 50\]"):
        load(tmp_path)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.mm_projector.4.weight"] = torch.zeros(64, 64)

    rewrite(write_llava(tmp_path), change)
    with pytest.raises(TensorError, match=r"does not use: model\.mm_projector\.4\.weight"):
        load(tmp_path)
