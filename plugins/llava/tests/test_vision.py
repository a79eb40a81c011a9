from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import IMAGE_SIZE, write_json, write_llava
from golden_cases import GOLDEN, GoldenCase, load_case
from image_rows import encode_images
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel
from transformers.models.llava_next.modeling_llava_next import unpad_image
from weight_files import LAYOUTS, FakeHub, read_all, single_bin, single_safetensors

import vlcore
from vlcore import (
    CheckpointNotFoundError,
    ConfigError,
    ImageInputs,
    ImageRows,
    NoPluginError,
    OptionError,
    TensorError,
    VisionModel,
)

CASES = (
    "llava15",
    "llava16_anyres",
    "llava16_mistral",
    "llava15_hf",
    "llava16_hf",
    "llava16_mistral_hf_newkeys",
)
TOWER = "model.vision_tower.vision_tower.vision_model."
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
ANYRES: dict[str, Any] = {
    "image_aspect_ratio": "anyres",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": PINPOINTS,
}
SIZES = [(40, 30), (30, 70), (28, 28), (90, 20)]


def random_image(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(noise.astype(np.uint8))


def encode(model: VisionModel, *images: Image.Image) -> list[Tensor]:
    inputs = [model.preprocess(image) for image in images]
    rows = [image.rows for image in encode_images(model, inputs)]
    assert [image.num_rows for image in inputs] == [len(image) for image in rows]
    return rows


def load(directory: Path) -> VisionModel:
    return vlcore.load_vision_model(directory)


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change a checkpoint's tensors in place."""
    tensors = read_all(directory)
    change(tensors)
    single_safetensors(directory, tensors)
    return directory


def set_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | values
    write_json(path, {key: value for key, value in content.items() if value is not ...})


# -- golden values


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return load_case(request.param)


@pytest.fixture(scope="module")
def golden_model(case: GoldenCase) -> VisionModel:
    return load(case.directory)


@pytest.fixture(scope="module")
def golden_inputs(case: GoldenCase, golden_model: VisionModel) -> list[ImageInputs]:
    return [golden_model.preprocess(image) for image in case.images()]


def test_pixels_are_the_releases(case: GoldenCase, golden_inputs: list[ImageInputs]) -> None:
    for position, inputs in enumerate(golden_inputs):
        sums = inputs.pixels.double().sum((1, 2, 3)).numpy()
        expected = case.expected[f"pixel_sum_{position}"]
        assert sums.shape == expected.shape
        np.testing.assert_allclose(sums, expected, rtol=0, atol=1e-2)
        if f"pixel_sub_{position}" in case.expected:
            some = inputs.pixels[:, :, ::8, ::8].numpy()
            expected = case.expected[f"pixel_sub_{position}"]
            np.testing.assert_allclose(some, expected, rtol=0, atol=1e-6)


def test_features_are_the_releases(
    case: GoldenCase, golden_model: VisionModel, golden_inputs: list[ImageInputs]
) -> None:
    rows = [image.rows for image in encode_images(golden_model, golden_inputs)]
    assert golden_model.hidden_size == 64
    assert [len(image) for image in rows] == case.facts["n_features"]
    assert [inputs.num_rows for inputs in golden_inputs] == case.facts["n_features"]
    for position, image in enumerate(rows):
        expected = case.expected[f"features_{position}"]
        np.testing.assert_allclose(image.numpy(), expected, **case.tolerance)


def test_an_image_alone_gives_what_it_gives_in_a_batch(
    case: GoldenCase, golden_model: VisionModel, golden_inputs: list[ImageInputs]
) -> None:
    (alone,) = encode_images(golden_model, golden_inputs[:1])
    np.testing.assert_allclose(alone.rows.numpy(), case.expected["features_0"], **case.tolerance)


@pytest.mark.parametrize("size", [(47, 376), (376, 47), (150, 150), (1, 400)])
def test_hf_unpads_as_transformers_does(size: tuple[int, int]) -> None:
    model = load(GOLDEN / "llava16_hf")
    inputs = model.preprocess(random_image(*size))
    columns, rows = inputs.layout.grid
    kept: Tensor = unpad_image(  # type: ignore[no-untyped-call]
        torch.zeros(1, rows * 8, columns * 8), (size[1], size[0])
    )
    assert inputs.num_rows == 64 + kept.shape[1] * (kept.shape[2] + 1)
    assert len(encode_images(model, [inputs])[0].rows) == inputs.num_rows


def test_weights_are_in_the_dtype_asked_for() -> None:
    model = vlcore.load_vision_model(GOLDEN / "llava16_anyres", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    inputs = model.preprocess(random_image(50, 90))
    assert inputs.pixels.dtype == torch.float32
    assert encode_images(model, [inputs])[0].rows.dtype == torch.bfloat16


# -- against an independent computation


def reference_pixels(image: Image.Image) -> Tensor:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    )
    pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"]
    return pixels


def reference_tower(directory: Path, pixels: Tensor, layer: int) -> Tensor:
    """Give a hidden state of the vision encoder in a checkpoint, by transformers' own CLIP."""
    config = json.loads((directory / "clip" / "config.json").read_text())["vision_config"]
    model = CLIPVisionModel(CLIPVisionConfig(**config)).train(False)
    stored = read_all(directory)
    names = {name: name.removeprefix("vision_model.") for name in model.state_dict()}
    model.load_state_dict({name: stored[TOWER + inner] for name, inner in names.items()})
    with torch.inference_mode():
        hidden: Tensor = model(pixels, output_hidden_states=True).hidden_states[layer]
    return hidden


def reference_projector(stored: Mapping[str, Tensor], features: Tensor) -> Tensor:
    root = "model.mm_projector."
    if f"{root}weight" in stored:
        return F.linear(features, stored[f"{root}weight"], stored[f"{root}bias"])
    depths = [index for index in range(0, 9, 2) if f"{root}{index}.weight" in stored]
    for index in depths:
        features = F.gelu(features) if index else features
        weight, bias = stored[f"{root}{index}.weight"], stored[f"{root}{index}.bias"]
        features = F.linear(features, weight, bias)
    return features


def assert_rows(rows: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=2e-5)


def test_linear_projector_in_square_mode(tmp_path: Path) -> None:
    write_llava(tmp_path, mm_projector_type="linear", image_aspect_ratio="square")

    def make_linear(tensors: dict[str, Tensor]) -> None:
        for kind in ("weight", "bias"):
            tensors[f"model.mm_projector.{kind}"] = tensors.pop(f"model.mm_projector.0.{kind}")
            del tensors[f"model.mm_projector.2.{kind}"]

    rewrite(tmp_path, make_linear)
    for size in SIZES:
        image = random_image(*size)
        tower = reference_tower(tmp_path, reference_pixels(image), -2)[0, 1:]
        (rows,) = encode(load(tmp_path), image)
        assert_rows(rows, reference_projector(read_all(tmp_path), tower))


def test_no_projector_type_and_no_aspect_mode_are_linear_and_square(tmp_path: Path) -> None:
    write_llava(tmp_path, mm_projector_type="linear", image_aspect_ratio="square")

    def make_linear(tensors: dict[str, Tensor]) -> None:
        for kind in ("weight", "bias"):
            tensors[f"model.mm_projector.{kind}"] = tensors.pop(f"model.mm_projector.0.{kind}")
            del tensors[f"model.mm_projector.2.{kind}"]

    rewrite(tmp_path, make_linear)
    (expected,) = encode(load(tmp_path), random_image(40, 30))
    set_json(tmp_path / "config.json", mm_projector_type=..., image_aspect_ratio=...)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


def test_identity_projector(tmp_path: Path) -> None:
    write_llava(tmp_path, mm_projector_type="identity", hidden_size=48, image_aspect_ratio=None)
    rewrite(tmp_path, lambda tensors: [tensors.pop(n) for n in [*tensors] if "projector" in n])
    image = random_image(40, 30)
    (rows,) = encode(load(tmp_path), image)
    assert_rows(rows, reference_tower(tmp_path, reference_pixels(image), -2)[0, 1:])


def test_identity_projector_of_another_width_is_reported(tmp_path: Path) -> None:
    write_llava(tmp_path, mm_projector_type="identity")
    rewrite(tmp_path, lambda tensors: [tensors.pop(n) for n in [*tensors] if "projector" in n])
    with pytest.raises(ConfigError, match=r"identity.* 48 .* 64"):
        load(tmp_path)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_deep_projectors(tmp_path: Path, depth: int) -> None:
    write_llava(tmp_path, mm_projector_type=f"mlp{depth}x_gelu", image_aspect_ratio="square")

    def set_depth(tensors: dict[str, Tensor]) -> None:
        for kind in ("weight", "bias"):
            tensors[f"model.mm_projector.4.{kind}"] = tensors[f"model.mm_projector.2.{kind}"] / 2
            for index in range(2 * depth, 6, 2):
                del tensors[f"model.mm_projector.{index}.{kind}"]

    rewrite(tmp_path, set_depth)
    image = random_image(40, 30)
    tower = reference_tower(tmp_path, reference_pixels(image), -2)[0, 1:]
    (rows,) = encode(load(tmp_path), image)
    assert_rows(rows, reference_projector(read_all(tmp_path), tower))


@pytest.mark.parametrize("layer", [-4, -2, -1, 0, 1, 3])
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_every_hidden_state_can_be_selected(tmp_path: Path, layer: int, feature: str) -> None:
    write_llava(
        tmp_path,
        image_aspect_ratio="square",
        mm_vision_select_layer=layer,
        mm_vision_select_feature=feature,
    )
    image = random_image(40, 30)
    tower = reference_tower(tmp_path, reference_pixels(image), layer)[0]
    tower = tower if feature == "cls_patch" else tower[1:]
    (rows,) = encode(load(tmp_path), image)
    assert len(rows) == (5 if feature == "cls_patch" else 4)
    assert_rows(rows, reference_projector(read_all(tmp_path), tower))


def reference_merge(
    tiles: Tensor, image_size: tuple[int, int], grid: tuple[int, int], newline: Tensor | None
) -> Tensor:
    """Lay out rows as ``llava_arch.py`` does; without a newline row nothing is unpadded."""
    columns, rows = grid
    side = 2
    whole = tiles[1:].view(rows, columns, side, side, -1)
    whole = whole.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    if newline is not None:
        height, width = whole.shape[1:]
        if image_size[0] / image_size[1] > width / height:
            cut = (height - int(image_size[1] * (width / image_size[0]))) // 2
            whole = whole[:, cut : height - cut]
        else:
            cut = (width - int(image_size[0] * (height / image_size[1]))) // 2
            whole = whole[:, :, cut : width - cut]
        column = newline[:, None, None].expand(-1, whole.shape[1], 1)
        whole = torch.cat([whole, column], dim=-1)
    return torch.cat([tiles[0], whole.flatten(1, 2).T])


@pytest.mark.parametrize("merge", ["flat", "spatial", "spatial_unpad"])
@pytest.mark.parametrize("size", [*SIZES, (1, 300), (300, 1)])
def test_tiles_are_laid_out(tmp_path: Path, merge: str, size: tuple[int, int]) -> None:
    write_llava(tmp_path, **ANYRES | {"mm_patch_merge_type": merge})
    model = load(tmp_path)
    inputs = model.preprocess(random_image(*size))
    stored = read_all(tmp_path)
    tower = reference_tower(tmp_path, inputs.pixels, -2)[:, 1:]
    tiles = reference_projector(stored, tower)
    expected = tiles.flatten(0, 1)
    if merge != "flat":
        newline = stored["model.image_newline"] if merge == "spatial_unpad" else None
        expected = reference_merge(tiles, size, inputs.layout.grid, newline)
    (image,) = encode_images(model, [inputs])
    assert inputs.num_rows == len(image.rows) == len(expected)
    assert_rows(image.rows, expected)
    assert isinstance(image, ImageRows)
    assert image.layout == inputs.layout


def test_every_pixel_is_needed_where_there_are_tiles(tmp_path: Path) -> None:
    tiled = load(write_llava(tmp_path / "tiled", **ANYRES))
    assert tiled.needed_size((4000, 3000)) is None
    padded = load(write_llava(tmp_path / "padded", image_aspect_ratio="pad"))
    assert padded.needed_size((4000, 3000)) == (IMAGE_SIZE, IMAGE_SIZE * 3 // 4)


def test_the_merge_type_is_flat_unless_said(tmp_path: Path) -> None:
    write_llava(tmp_path, **ANYRES | {"mm_patch_merge_type": "flat"})
    (expected,) = encode(load(tmp_path), random_image(40, 30))
    set_json(tmp_path / "config.json", mm_patch_merge_type=...)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


def test_pinpoints_may_be_a_string(tmp_path: Path) -> None:
    images = [random_image(*size) for size in SIZES]
    write_llava(tmp_path, **ANYRES)
    expected = encode(load(tmp_path), *images)
    write_llava(tmp_path, **ANYRES | {"image_grid_pinpoints": str(PINPOINTS)})
    for rows, same in zip(encode(load(tmp_path), *images), expected, strict=True):
        assert torch.equal(rows, same)


# -- the files of the weights


def moved_tower(directory: Path) -> dict[str, Tensor]:
    """Take the vision encoder's tensors out of the checkpoint."""
    stored = read_all(directory)
    tower = {name: stored.pop(name) for name in [*stored] if name.startswith(TOWER)}
    single_safetensors(directory, stored)
    return {name.removeprefix(TOWER): tensor for name, tensor in tower.items()}


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_storage_gives_the_same_rows(tmp_path: Path, write: Any) -> None:
    write_llava(tmp_path)
    (expected,) = encode(load(tmp_path), random_image(40, 30))
    stored = read_all(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write(tmp_path, stored)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_an_encoder_next_to_the_checkpoint(tmp_path: Path, write: Any, prefix: str) -> None:
    write_llava(tmp_path)
    (expected,) = encode(load(tmp_path), random_image(40, 30))
    tower = {prefix + name: tensor for name, tensor in moved_tower(tmp_path).items()}
    others = {
        "text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2),
        "logit_scale": torch.zeros(()),
        f"{prefix}embeddings.position_ids": torch.arange(5)[None],
    }
    write(tmp_path / "clip", tower | others)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


def test_the_fingerprint_changes_with_the_encoder_next_to_it(tmp_path: Path) -> None:
    tower = moved_tower(write_llava(tmp_path))
    single_safetensors(tmp_path / "clip", tower)
    before = load(tmp_path).fingerprint
    assert load(tmp_path).fingerprint == before
    single_safetensors(tmp_path / "clip", tower | {"embeddings.position_ids": torch.arange(9)})
    assert load(tmp_path).fingerprint != before


def test_an_encoder_in_the_checkpoint_takes_precedence(tmp_path: Path) -> None:
    write_llava(tmp_path)
    (expected,) = encode(load(tmp_path), random_image(40, 30))
    stored = read_all(tmp_path)
    tower = {name.removeprefix(TOWER): stored[name] * 0 for name in stored if TOWER in name}
    single_safetensors(tmp_path / "clip", tower)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


def test_a_tower_under_the_shorter_name(tmp_path: Path) -> None:
    write_llava(tmp_path)
    (expected,) = encode(load(tmp_path), random_image(40, 30))

    def shorten(tensors: dict[str, Tensor]) -> None:
        for name in [*tensors]:
            tensors[name.replace(".vision_model.", ".")] = tensors.pop(name)

    rewrite(tmp_path, shorten)
    (rows,) = encode(load(tmp_path), random_image(40, 30))
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("inside", [False, True])
def test_a_tower_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    directory = write_llava(tmp_path / "model")
    (expected,) = encode(load(directory), random_image(40, 30))
    set_json(directory / "config.json", mm_vision_tower="openai/clip-tiny")
    repository = tmp_path / "repository"
    shutil.move(directory / "clip", repository)
    (repository / "model.py").write_text("raise RuntimeError")
    if not inside:
        tower = moved_tower(directory)
        single_bin(repository, {f"vision_model.{name}": tower[name] for name in tower})
    hub = FakeHub(tmp_path / "cache", monkeypatch)
    hub.repositories["openai/clip-tiny"] = repository
    (rows,) = encode(load(directory), random_image(40, 30))
    assert torch.equal(rows, expected)
    files = {"config.json", "preprocessor_config.json"} | (
        set() if inside else {"pytorch_model.bin"}
    )
    assert hub.fetched("openai/clip-tiny") == files


def test_a_tower_on_a_hub_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llava(tmp_path, mm_vision_tower="openai/clip-tiny")
    FakeHub(tmp_path / "cache", monkeypatch)
    with pytest.raises(CheckpointNotFoundError, match="refers to 'openai/clip-tiny'"):
        load(tmp_path)


@pytest.mark.parametrize("newer", [False, True])
def test_hf_key_names_old_and_new(tmp_path: Path, newer: bool) -> None:
    case = load_case("llava16_hf")
    stored = load_file(case.directory / "model.safetensors")
    renames = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.vision_model.": "model.vision_tower." + ("" if newer else "vision_model."),
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
    }
    for path in case.directory.glob("*.json"):
        shutil.copy(path, tmp_path)
    renamed = {}
    for name, tensor in stored.items():
        old = next(prefix for prefix in renames if name.startswith(prefix))
        renamed[renames[old] + name.removeprefix(old)] = tensor
    single_safetensors(tmp_path, renamed)
    (rows,) = encode(load(tmp_path), case.images()[0])
    np.testing.assert_allclose(rows.numpy(), case.expected["features_0"], **case.tolerance)


def test_the_processors_newer_file_is_read(tmp_path: Path) -> None:
    case = load_case("llava15_hf")
    shutil.copytree(case.directory, tmp_path, dirs_exist_ok=True)
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    write_json(tmp_path / "processor_config.json", {"image_processor": processor})
    (rows,) = encode(load(tmp_path), case.images()[0])
    np.testing.assert_allclose(rows.numpy(), case.expected["features_0"], **case.tolerance)


# -- bad checkpoints


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


# -- odd images


def odd_images() -> dict[str, Image.Image]:
    colours = random_image(37, 23)
    palette = colours.quantize(8)
    palette.info["transparency"] = 3
    deep = Image.fromarray(np.arange(37 * 23, dtype=np.uint16).reshape(23, 37) * 60)
    return {
        "1x1": random_image(1, 1),
        "1x5000": random_image(1, 5000),
        "5000x1": random_image(5000, 1),
        "L": colours.convert("L"),
        "LA": colours.convert("LA"),
        "RGBA": colours.convert("RGBA"),
        "P": palette,
        "CMYK": colours.convert("CMYK"),
        "YCbCr": colours.convert("YCbCr"),
        "I;16": deep,
        "F": colours.convert("F"),
        "1": colours.convert("1"),
    }


@pytest.fixture(scope="module", params=["pad", "square", "anyres", "hf", "hf_next"])
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("model")
    if request.param.startswith("hf"):
        return load(GOLDEN / ("llava16_hf" if request.param == "hf_next" else "llava15_hf"))
    if request.param == "anyres":
        return load(write_llava(directory, **ANYRES))
    return load(write_llava(directory, image_aspect_ratio=request.param))


@pytest.mark.filterwarnings("default:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("name", odd_images())
def test_odd_images_give_the_stated_number_of_rows(any_model: VisionModel, name: str) -> None:
    inputs = any_model.preprocess(odd_images()[name])
    assert torch.isfinite(inputs.pixels).all()
    (rows,) = encode_images(any_model, [inputs])
    assert len(rows.rows) == inputs.num_rows


@pytest.mark.parametrize("mode", ["L", "RGBA", "1"])
def test_modes_are_read_as_rgb(any_model: VisionModel, mode: str) -> None:
    image = random_image(37, 23).convert(mode)
    expected = any_model.preprocess(image.convert("RGB")).pixels
    assert torch.equal(any_model.preprocess(image).pixels, expected)


def test_preprocess_takes_no_options(any_model: VisionModel) -> None:
    assert any_model.image_options == frozenset()
    with pytest.raises(TypeError, match="unexpected image options: detail"):
        any_model.preprocess(random_image(3, 3), detail="low")


# -- a vision encoder over several devices


@pytest.mark.parametrize(
    "spread",
    [
        {"device_map": "auto"},
        {"device_map": {"embeddings": "cpu", "pre_layrnorm": "cpu", "encoder": "cpu"}},
        {"max_memory": {"cpu": "1GiB"}},
    ],
)
def test_a_spread_tower_gives_the_same_rows(tmp_path: Path, spread: Any) -> None:
    directory = write_llava(tmp_path, **ANYRES)
    model = vlcore.load_vision_model(directory, **spread)
    assert model.is_spread
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    images = [random_image(*size) for size in SIZES]
    for ours, theirs in zip(encode(model, *images), encode(load(directory), *images), strict=True):
        assert torch.equal(ours, theirs)


def test_a_tower_that_fits_nowhere_is_refused(tmp_path: Path) -> None:
    directory = write_llava(tmp_path)
    with pytest.raises(OptionError, match="submodules of ClipTower fit on no device"):
        vlcore.load_vision_model(directory, max_memory={"cpu": 100})
