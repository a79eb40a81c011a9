"""The vision model against an independent computation of the same embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from checkpoints import IMAGE_SIZE, write_llava
from image_rows import encode_images
from llava_vision import (
    ANYRES,
    PINPOINTS,
    SIZES,
    TOWER,
    encode,
    load,
    random_image,
    rewrite,
    set_json,
)
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel
from weight_files import read_all

from vlcore import (
    ConfigError,
    ImageRows,
)


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
