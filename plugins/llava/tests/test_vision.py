from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_llava
from golden_cases import GOLDEN, GoldenCase, load_case
from image_rows import encode_images
from llava_vision import (
    ANYRES,
    SIZES,
    encode,
    load,
    random_image,
)
from PIL import Image
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import unpad_image

import vlcore
from vlcore import (
    ImageInputs,
    OptionError,
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


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return load_case(request.param)


@pytest.fixture(scope="module")
def golden_model(case: GoldenCase) -> VisionModel:
    return load(case.directory)


@pytest.fixture(scope="module")
def golden_inputs(case: GoldenCase, golden_model: VisionModel) -> list[ImageInputs]:
    return [golden_model.preprocess(image) for image in case.images()]


# -- golden values


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


# -- odd images


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
