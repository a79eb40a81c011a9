from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_json, write_yi
from golden_cases import GoldenCase, load_case
from image_rows import encode_images
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from weight_files import FakeHub, read_all, single_bin, single_safetensors

import vlcore
from vlcore import (
    CheckpointNotFoundError,
    ConfigError,
    ImageInputs,
    NoPluginError,
    TensorError,
    VisionModel,
)

IMAGE = Image.effect_noise((50, 90), 80).convert("RGB")
OWN_TOWER = "model.vision_tower.vision_tower."


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return load_case("yi_vl")


@pytest.fixture(scope="module")
def model(case: GoldenCase) -> VisionModel:
    return vlcore.load_vision_model(case.directory)


@pytest.fixture(scope="module")
def inputs(case: GoldenCase, model: VisionModel) -> list[ImageInputs]:
    return [model.preprocess(image) for image in case.images()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_yi(tmp_path / "model")


def tower_of(directory: Path) -> Path:
    (tower,) = (directory / "vit").iterdir()
    return tower


def rows_of(model: Any) -> Tensor:
    loaded = vlcore.load_vision_model(model)
    return encode_images(loaded, [loaded.preprocess(IMAGE)])[0].rows


def set_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | values
    write_json(path, {key: value for key, value in content.items() if value is not ...})


# -- golden values


def test_pixels_are_the_releases(case: GoldenCase, inputs: list[ImageInputs]) -> None:
    for position, image in enumerate(inputs):
        sums = image.pixels.double().sum((1, 2, 3)).numpy()
        expected = case.expected[f"pixel_sum_{position}"]
        np.testing.assert_allclose(sums, expected, rtol=0, atol=1e-2)
        some = image.pixels[:, :, ::8, ::8].numpy()
        np.testing.assert_allclose(some, case.expected[f"pixel_sub_{position}"], rtol=0, atol=1e-6)


def test_features_are_the_releases(
    case: GoldenCase, model: VisionModel, inputs: list[ImageInputs]
) -> None:
    rows = [image.rows for image in encode_images(model, inputs)]
    assert [len(image) for image in rows] == case.facts["n_features"]
    assert [image.num_rows for image in inputs] == case.facts["n_features"]
    for position, image in enumerate(rows):
        expected = case.expected[f"features_{position}"]
        np.testing.assert_allclose(image.numpy(), expected, **case.tolerance)


def test_the_norms_epsilon_is_the_releases(case: GoldenCase, inputs: list[ImageInputs]) -> None:
    def error(epsilon: float) -> float:
        model = vlcore.load_vision_model(case.directory)
        for module in vars(model)["_projector"]:
            if isinstance(module, nn.LayerNorm):
                module.eps = epsilon
        (image,) = encode_images(model, inputs[:1])
        return float(np.abs(image.rows.numpy() - case.expected["features_0"]).max())

    assert error(1e-5) < error(1e-6) / 3
    assert error(1e-5) < error(2e-5) / 3


def test_a_deeper_projector(directory: Path) -> None:
    stored = read_all(directory)
    root = "model.mm_projector."
    for kind in ("weight", "bias"):
        stored[f"{root}6.{kind}"] = stored[f"{root}3.{kind}"] / 2
        stored[f"{root}7.{kind}"] = stored[f"{root}4.{kind}"] * 2
    (before,) = [rows_of(directory)]
    single_safetensors(directory, stored)
    set_json(directory / "config.json", mm_projector_type="mlp3x_gelu_Norm")
    expected = F.layer_norm(
        F.linear(
            F.gelu(before), stored[f"{root}6.weight"].float(), stored[f"{root}6.bias"].float()
        ),
        (64,),
        stored[f"{root}7.weight"].float(),
        stored[f"{root}7.bias"].float(),
    )
    torch.testing.assert_close(rows_of(directory), expected, rtol=1e-5, atol=2e-5)


# -- the files of the vision encoder


@pytest.mark.parametrize("level", ["vision_model.", ""])
def test_a_tower_in_the_main_file_wins(directory: Path, level: str) -> None:
    expected = rows_of(directory)
    tower = read_all(tower_of(directory))
    inside = {OWN_TOWER + level + name.removeprefix("vision_model."): tower[name] for name in tower}
    single_safetensors(directory, read_all(directory) | inside)
    single_safetensors(tower_of(directory), {name: tower[name] * 0 for name in tower})
    assert torch.equal(rows_of(directory), expected)
    (tower_of(directory) / "model.safetensors").unlink()
    assert torch.equal(rows_of(directory), expected)


def test_a_tower_in_a_bin_file(directory: Path) -> None:
    expected = rows_of(directory)
    tower = read_all(tower_of(directory))
    (tower_of(directory) / "model.safetensors").unlink()
    single_bin(tower_of(directory), tower)
    assert torch.equal(rows_of(directory), expected)


def test_the_folder_of_a_hub_repository(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["maker/yi"] = directory
    assert torch.equal(rows_of("maker/yi"), rows_of(directory))


# -- bad checkpoints


def test_a_missing_folder_is_reported(directory: Path) -> None:
    shutil.rmtree(directory / "vit")
    with pytest.raises(
        CheckpointNotFoundError, match=r"refers to '\./vit/clip.*', which is not a directory"
    ) as caught:
        vlcore.load_vision_model(directory)
    assert str(directory) in str(caught.value)
    assert len(vlcore.load_language_model(directory).to_transformers().state_dict()) > 0


def test_an_empty_folder_is_reported(directory: Path) -> None:
    for path in tower_of(directory).iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"clip.* has no config\.json"):
        vlcore.load_vision_model(directory)


def test_a_folder_without_weights_is_reported(directory: Path) -> None:
    (tower_of(directory) / "model.safetensors").unlink()
    with pytest.raises(TensorError, match=r"clip.* holds no weights: expected model\.safetensors"):
        vlcore.load_vision_model(directory)


def test_a_tower_of_another_width_is_reported(directory: Path) -> None:
    set_json(directory / "config.json", mm_hidden_size=50)
    with pytest.raises(ConfigError, match=r"mm_hidden_size is 50, but .* is 48"):
        vlcore.load_vision_model(directory)


def test_a_projector_for_another_tower_is_reported(directory: Path) -> None:
    stored = read_all(directory)
    stored["model.mm_projector.0.weight"] = torch.zeros(64, 50)
    single_safetensors(directory, stored)
    message = (
        r"model\.mm_projector\.0\.weight gives \[64, 50\] where config\.json asks for \[64, 48"
    )
    with pytest.raises(TensorError, match=message):
        vlcore.load_vision_model(directory)


def test_a_tower_that_its_config_does_not_describe_is_reported(directory: Path) -> None:
    set_json(tower_of(directory) / "config.json", intermediate_size=80)
    with pytest.raises(TensorError, match=r"mlp\.fc1\.weight gives \[96, 48\] where .* \[80, 48\]"):
        vlcore.load_vision_model(directory)


def test_a_projector_without_norms_is_reported(directory: Path) -> None:
    stored = read_all(directory)
    del stored["model.mm_projector.1.weight"]
    single_safetensors(directory, stored)
    with pytest.raises(TensorError, match=r"lacks 1 tensor\(s\): model\.mm_projector\.1\.weight"):
        vlcore.load_vision_model(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": ...}, "hidden_size must be an integer; it is None"),
        ({"hidden_size": "64"}, "hidden_size must be an integer; it is '64'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio in .* is 'anyres'; known: square"),
        ({"mm_vision_select_layer": 9}, "hidden state 9 of the vision encoder is requested, wh"),
        ({"mm_vision_select_feature": "all"}, "mm_vision_select_feature in .* is 'all'; known: pa"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_reported(
    directory: Path, change: dict[str, Any], message: str
) -> None:
    set_json(directory / "config.json", **change)
    with pytest.raises(ConfigError, match=message):
        vlcore.load_vision_model(directory)


@pytest.mark.parametrize("key", ["mm_vision_tower", "mm_projector_type"])
def test_a_config_that_does_not_say_what_it_is_matches_nothing(directory: Path, key: str) -> None:
    set_json(directory / "config.json", **{key: ...})
    with pytest.raises(NoPluginError, match="vl-plugin-yi"):
        vlcore.load_vision_model(directory, plugin="vl-plugin-yi")
