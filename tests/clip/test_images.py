from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from vlcore.clip.images import (
    ClipProcessor,
    best_canvas,
    cut_tiles,
    fit_on_canvas,
    pad_to_square,
    read_pinpoints,
)
from vlcore.errors import ConfigError, ImageLimitError

CANVASES = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
BICUBIC = Image.Resampling.BICUBIC


def make_image(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(noise.astype(np.uint8))


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (28, 28), (5, 90), (300, 7), (1, 1)])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"size": 40, "crop_size": 28},
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 28, "width": 28}},
        {"size": {"height": 30, "width": 26}, "crop_size": {"height": 24, "width": 20}},
        {"do_center_crop": False, "size": {"height": 30, "width": 26}},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.5], "rescale_factor": 0.01},
        {"resample": 2},
    ],
    ids=str,
)
def test_pixels_are_those_of_transformers(size: tuple[int, int], config: dict[str, Any]) -> None:
    image = make_image(*size)
    ours = ClipProcessor.from_json(config, 28, "preprocessor_config.json")(image)
    full = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}} | config
    for key in ("size", "crop_size"):
        if isinstance(full[key], int):
            full[key] = (
                {"shortest_edge": full[key]}
                if key == "size"
                else {
                    "height": full[key],
                    "width": full[key],
                }
            )
    reference = CLIPImageProcessorPil(**full)(image, return_tensors="pt")["pixel_values"][0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, reference.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(2, 900), (900, 2), (30, 2000)])
def test_a_long_strip_is_not_resized_whole(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    strip = Image.linear_gradient("L").resize(size, BICUBIC).convert("RGB")
    processor = ClipProcessor.from_json({"do_rescale": False, "do_normalize": False}, 28, "")
    whole = processor(strip)
    monkeypatch.setattr("vlcore.clip.images.MAX_RESIZED_PIXELS", 28 * 28)
    assert (processor(strip) - whole).abs().max() <= 1


@pytest.mark.parametrize("size", ["large", {}, {"width": 3}, None, {"shortest_edge": "3"}])
def test_a_malformed_size_is_reported(size: object) -> None:
    with pytest.raises(
        ConfigError, match=r"^the processor: a size must be an integer, shortest_edge, or"
    ):
        ClipProcessor.from_json({"size": size}, 28, "the processor")


@pytest.mark.parametrize(
    "config",
    [
        {"resample": 99},
        {"image_mean": [0.5]},
        {"image_std": [0.0, 0.2, 0.2]},
        {"image_mean": "grey"},
        {"size": 0},
        {"crop_size": -3},
    ],
    ids=str,
)
def test_an_impossible_processor_is_reported(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^the processor"):
        ClipProcessor.from_json(config, 28, "the processor")


def test_the_background_is_the_mean_colour() -> None:
    assert ClipProcessor.from_json({}, 28, "").background == (122, 116, 104)
    assert ClipProcessor.from_json({"image_mean": [0, 0.5, 1]}, 28, "").background == (0, 127, 255)


# -- pinpoints


@pytest.mark.parametrize(
    ("value", "sizes"),
    [
        ([[336, 672], [672, 336]], ((336, 672), (672, 336))),
        ("[[336, 672], [672, 336]]", ((336, 672), (672, 336))),
        ("[(336,672)]", ((336, 672),)),
        (((1, 2),), ((1, 2),)),
    ],
)
def test_pinpoints_are_read(value: object, sizes: tuple[tuple[int, int], ...]) -> None:
    assert read_pinpoints(value, "config.json") == sizes
    flipped = tuple((height, width) for width, height in sizes)
    assert read_pinpoints(value, "config.json", height_first=True) == flipped


@pytest.mark.parametrize(
    "value",
    [
        [], "[]", "", "(1x1),...,(6x6)", "__import__('os')", [[1]], [[1, 2, 3]], [["a", "b"]],
        [[0, 2]], [[-1, 2]], 3, None, {"a": 1}, [None], "[" * 9999, [[1e400, 1]],
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_bad_pinpoints_are_reported(value: object) -> None:
    with pytest.raises(
        ConfigError, match=r"^config\.json: image_grid_pinpoints must be a list of pa"
    ):
        read_pinpoints(value, "config.json")


# -- canvases


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((2000, 900), (1008, 336)),
        ((900, 2000), (336, 1008)),
        ((640, 480), (672, 672)),
        ((300, 300), (336, 672)),  # all keep it whole; of the smallest the first wins
        ((1000, 10), (1008, 336)),
        ((1, 5000), (336, 672)),  # nothing of it is kept anywhere
    ],
)
def test_the_best_canvas(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    assert best_canvas(size, CANVASES) == canvas


def test_the_best_canvas_is_that_of_the_reference() -> None:
    def release(size: tuple[int, int]) -> tuple[int, int] | None:
        best, most, least = None, 0, float("inf")
        for width, height in CANVASES:
            scale = min(width / size[0], height / size[1])
            scaled = int(size[0] * scale), int(size[1] * scale)
            effective = min(scaled[0] * scaled[1], size[0] * size[1])
            wasted = width * height - effective
            if effective > most or (effective == most and wasted < least):
                best, most, least = (width, height), effective, wasted
        return best

    generator = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in generator.integers(1, 2000, (2000, 2))]
    assert [best_canvas(size, CANVASES) for size in sizes] == [release(size) for size in sizes]


@pytest.mark.parametrize("size", [(200, 90), (75, 210), (151, 140), (1, 500), (500, 1), (56, 56)])
def test_a_fitted_image_is_that_of_transformers(size: tuple[int, int]) -> None:
    image, canvas, edge = make_image(*size), (56, 112), 28
    fitted = fit_on_canvas(image, canvas, BICUBIC)
    tiles = np.stack([np.asarray(tile).transpose(2, 0, 1) for tile in cut_tiles(fitted, edge)])
    reference = LlavaNextImageProcessorPil(
        size={"shortest_edge": edge},
        crop_size={"height": edge, "width": edge},
        image_grid_pinpoints=[[canvas[1], canvas[0]]],
        do_rescale=False,
        do_normalize=False,
    )(image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(tiles, reference[1:].astype(np.uint8))


def test_tiles_are_cut_row_by_row() -> None:
    image = Image.new("RGB", (6, 4))
    for x in range(6):
        for y in range(4):
            image.putpixel((x, y), (x // 2, y // 2, 0))
    corners = [tile.getpixel((0, 0)) for tile in cut_tiles(image, 2)]
    assert corners == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0), (1, 1, 0), (2, 1, 0)]
    assert {tile.size for tile in cut_tiles(image, 2)} == {(2, 2)}


# -- padding


@pytest.mark.parametrize(
    ("size", "corner"), [((4, 7), (1, 0)), ((7, 4), (0, 1)), ((1, 2), (0, 0)), ((3, 3), (0, 0))]
)
def test_the_image_is_in_the_middle_of_the_square(
    size: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = make_image(*size)
    square = np.asarray(pad_to_square(image, (1, 2, 3))).copy()
    edge = max(size)
    assert square.shape == (edge, edge, 3)
    inside = np.s_[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]]
    assert np.array_equal(square[inside], np.asarray(image))
    square[inside] = (1, 2, 3)
    assert np.array_equal(square, np.broadcast_to([1, 2, 3], square.shape))


def test_a_square_that_is_too_large_is_refused() -> None:
    strip = Image.new("RGB", (20_000, 1))
    with pytest.raises(
        ImageLimitError, match=r"20000 x 1 pixels is too long and thin.* Crop or shri"
    ):
        pad_to_square(strip, (0, 0, 0))
