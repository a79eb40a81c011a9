from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vlcore.clip import ClipConfig, ClipProcessor, ClipTower, ClipVisionModel, cut_tiles
from vlcore.vision.model import encode_batch

CONFIG = ClipConfig(
    hidden_size=12,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
PROCESSOR = ClipProcessor.from_json({}, 28, "the processor")


class TiledVisionModel(ClipVisionModel):
    """Splits an image into two by two tiles."""

    def views(self, image: Image.Image) -> tuple[Sequence[Image.Image], Any]:
        return cut_tiles(image.resize((2 * self.edge, 2 * self.edge)), self.edge), image.size

    def needed_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return 2 * self.edge, 2 * self.edge


def make(kind: type[ClipVisionModel] = ClipVisionModel, **options: Any) -> ClipVisionModel:
    torch.manual_seed(0)
    tower = ClipTower(CONFIG, 1)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.3)
    return kind(tower.eval(), nn.Linear(12, 8), PROCESSOR, hidden_size=8, **options)


def make_image(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(noise.astype(np.uint8))


def rows_of(model: ClipVisionModel, image: Image.Image) -> Tensor:
    inputs = model.preprocess(image)
    (encoded,) = encode_batch(model, [inputs])
    assert len(encoded.rows) == inputs.num_rows
    return encoded.rows


def tower_and_projector(model: ClipVisionModel, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = model._projector(model._tower(pixels))
    return result


@pytest.mark.parametrize(
    ("pads", "size", "needed"),
    [
        (False, (400, 300), (37, 28)),
        (False, (300, 400), (28, 37)),
        (True, (400, 300), (28, 21)),
        (True, (301, 400), (22, 28)),
    ],
)
def test_the_needed_size_is_that_of_the_image_in_its_view(
    pads: bool, size: tuple[int, int], needed: tuple[int, int]
) -> None:
    assert make(pads=pads).needed_size(size) == needed


@pytest.mark.parametrize("keeps", [False, True])
def test_an_embedding_for_each_patch_after_that_of_the_class_token(keeps: bool) -> None:
    model = make(keep_class_token=keeps)
    image = make_image(40, 30)
    expected = tower_and_projector(model, PROCESSOR(image)[None])[0]
    assert model.rows_per_view == (5 if keeps else 4)
    torch.testing.assert_close(rows_of(model, image), expected if keeps else expected[1:])


def test_an_image_is_cropped_or_padded() -> None:
    image = make_image(40, 30)
    assert torch.equal(make().preprocess(image).pixels, PROCESSOR(image)[None])
    padded = Image.new("RGB", (40, 40), PROCESSOR.background)
    padded.paste(image, (0, 5))
    assert torch.equal(make(pads=True).preprocess(image).pixels, PROCESSOR(padded)[None])


@pytest.mark.parametrize("mode", ["L", "RGBA", "1", "CMYK"])
def test_images_of_any_mode_are_read_as_rgb(mode: str) -> None:
    image = make_image(40, 30).convert(mode)
    expected = make().preprocess(image.convert("RGB")).pixels
    assert torch.equal(make().preprocess(image).pixels, expected)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="unexpected image options: detail"):
        make().preprocess(make_image(3, 3), detail="low")


def test_a_subclass_encodes_several_views() -> None:
    model = make(TiledVisionModel)
    image = make_image(56, 56)
    inputs = model.preprocess(image)
    assert inputs.layout == (56, 56)
    tiles = [PROCESSOR(tile) for tile in cut_tiles(image, 28)]
    assert torch.equal(inputs.pixels, torch.stack(tiles))
    expected = torch.cat([tower_and_projector(model, tile[None])[0, 1:] for tile in tiles])
    torch.testing.assert_close(rows_of(model, image), expected)


def test_tiles_of_several_images_share_a_batch() -> None:
    model = make(TiledVisionModel)
    images = [make_image(56, 56), make_image(30, 90)]
    encoded = encode_batch(model, [model.preprocess(image) for image in images])
    for image, rows in zip(images, encoded, strict=True):
        torch.testing.assert_close(rows.rows, rows_of(model, image))


def test_models_differ_by_the_settings_of_their_preprocessing() -> None:
    settings = repr(make().preprocess_settings)
    assert settings == repr(make().preprocess_settings)
    padding = make(pads=True)
    other = make()
    other.processor = ClipProcessor.from_json({"image_mean": [0.5, 0.5, 0.5]}, 28, "the processor")
    assert len({settings, repr(padding.preprocess_settings), repr(other.preprocess_settings)}) == 3
