from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_json
from golden_cases import GOLDEN, GoldenCase, load_case
from image_rows import encode_images
from PIL import Image
from qwen_checkpoints import write_qwen
from torch import Tensor
from vl_plugin_qwen.vision import QwenVisionModel, load_tower, read_visual_config, to_pixels
from weight_files import LAYOUTS, ReadSpy, read_all

import vlcore
from vlcore import Checkpoint, ConfigError, ImageEncoder, ImageRows, TensorError, VisionModel

FEATURES = {"qwen_vl": "vision_features", "qwen_vl_vision": "features"}


# -- golden values


@pytest.fixture(scope="module", params=FEATURES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return load_case(request.param)


@pytest.fixture(scope="module")
def model(case: GoldenCase) -> VisionModel:
    return vlcore.load_vision_model(case.directory)


def encode(model: VisionModel, images: Sequence[Image.Image]) -> list[Tensor]:
    return [
        image.rows for image in encode_images(model, [model.preprocess(image) for image in images])
    ]


def test_features_are_the_releases(case: GoldenCase, model: VisionModel) -> None:
    rows = torch.stack(encode(model, case.images()))
    expected = case.expected[FEATURES[case.name]]
    np.testing.assert_allclose(rows.numpy(), expected, **case.tolerance)


def test_an_image_alone_gives_what_it_gives_in_a_batch(
    case: GoldenCase, model: VisionModel
) -> None:
    (alone,) = encode(model, case.images()[:1])
    expected = case.expected[FEATURES[case.name]][0]
    np.testing.assert_allclose(alone.numpy(), expected, **case.tolerance)


def test_pixels_are_the_releases() -> None:
    case = load_case("qwen_vl_vision")
    pixels = torch.stack([to_pixels(image, 448) for image in case.images()])
    np.testing.assert_array_equal(
        pixels[:, :, ::16, ::16].numpy(), case.expected["pixel_values_sub"]
    )
    sums = pixels.double().sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(sums, case.expected["pixel_values_sum"], rtol=1e-9)


def test_inner_values_are_the_releases() -> None:
    case = load_case("qwen_vl_vision")
    model = vlcore.load_vision_model(case.directory)
    assert isinstance(model, QwenVisionModel)
    seen: dict[str, Tensor] = {}
    for name in ("ln_pre", "transformer", "attn_pool"):
        module = model._tower.get_submodule(name)
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    encode(model, case.images())
    for name, recorded, step in (
        ("ln_pre", "ln_pre_sub", 37),
        ("transformer", "trunk_sub", 37),
        ("attn_pool", "attn_pool_sub", 16),
    ):
        np.testing.assert_allclose(
            seen[name][:, ::step].numpy(),
            case.expected[recorded],
            err_msg=name,
            **case.tolerance,
        )


# -- images


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen(tmp_path_factory.mktemp("qwen") / "checkpoint")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_is_read(tiny: Path, mode: str) -> None:
    model = vlcore.load_vision_model(tiny)
    image = Image.new("RGB", (50, 20), "red").convert(mode)
    expected = encode(model, [image.convert("RGB")])[0]
    assert torch.equal(encode(model, [image])[0], expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (28, 28)])
def test_every_shape_gives_256_rows(tiny: Path, size: tuple[int, int]) -> None:
    model = vlcore.load_vision_model(tiny)
    inputs = model.preprocess(Image.new("RGB", size, "blue"))
    assert inputs.num_rows == 256
    assert encode_images(model, [inputs])[0].rows.shape == (256, 128)


def test_the_square_is_what_is_needed(tiny: Path) -> None:
    model = vlcore.load_vision_model(tiny)
    side = model.preprocess(Image.new("RGB", (90, 60))).pixels.shape[-1]
    assert model.needed_size((4000, 3000)) == (side, side)


def test_an_option_is_refused(tiny: Path) -> None:
    with pytest.raises(TypeError, match="unexpected image options: detail"):
        vlcore.load_vision_model(tiny).preprocess(Image.new("RGB", (9, 9)), detail="low")


# -- checkpoints


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_storage_gives_the_same_rows(tiny: Path, tmp_path: Path, write: Any) -> None:
    image = Image.effect_noise((40, 30), 80)
    expected = encode(vlcore.load_vision_model(tiny), [image])[0]
    write(tmp_path, read_all(tiny))
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    assert torch.equal(encode(vlcore.load_vision_model(tmp_path), [image])[0], expected)


def test_only_the_tower_is_read(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = ReadSpy(monkeypatch)
    vlcore.load_vision_model(tiny, dtype="bfloat16")
    assert spy.names
    assert all(name.startswith("transformer.visual.") for name in spy.names)


def test_weights_and_positions_have_the_dtype_asked_for(tiny: Path) -> None:
    model = vlcore.load_vision_model(tiny, dtype="bfloat16")
    rows = encode(model, [Image.new("RGB", (9, 9))])[0]
    assert rows.dtype == torch.bfloat16


def copy_with(tiny: Path, directory: Path, **visual: Any) -> Path:
    """Copy a checkpoint and change its visual block; ``...`` takes a key away."""
    config = json.loads((tiny / "config.json").read_text())
    changed = config["visual"] | visual
    config["visual"] = {key: value for key, value in changed.items() if value is not ...}
    write_json(directory / "config.json", config)
    (directory / "model.safetensors").symlink_to(tiny / "model.safetensors")
    return directory


def test_a_key_that_the_tower_needs_is_named(tiny: Path, tmp_path: Path) -> None:
    copy_with(tiny, tmp_path, patch_size=...)
    with pytest.raises(ConfigError, match=r"visual in config\.json of .* lacks patch_size"):
        vlcore.load_vision_model(tmp_path)


def test_a_width_that_does_not_fit_the_checkpoint_is_reported(tiny: Path, tmp_path: Path) -> None:
    copy_with(tiny, tmp_path, width=32)
    with pytest.raises(TensorError, match=r"conv1\.weight gives \[64, 3, 14, 14\] where .*\[32, 3"):
        vlcore.load_vision_model(tmp_path)


def test_rows_that_do_not_fit_the_language_model_are_reported(tiny: Path, tmp_path: Path) -> None:
    copy_with(tiny, tmp_path, output_dim=256)
    with pytest.raises(ConfigError, match=r"output_dim 256; the language .* 128"):
        vlcore.load_vision_model(tmp_path)


def test_missing_layers_are_named(tiny: Path, tmp_path: Path) -> None:
    copy_with(tiny, tmp_path, layers=2)
    with pytest.raises(TensorError, match=r"lacks 12 tensor.*transformer\.resblocks\.1\.attn"):
        vlcore.load_vision_model(tmp_path)


# -- the simple contract


class SimpleQwenVisionModel(VisionModel):
    """Does everything in ``forward``, as the guide of lmdeploy's vision models teaches."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = read_visual_config(checkpoint)
        self.hidden_size = self.config.output_dim
        self.model = load_tower(checkpoint, self.config, self.device, torch.float32)

    def forward(self, images: Sequence[Image.Image]) -> list[Tensor]:
        pixels = torch.stack([to_pixels(image, self.config.image_size) for image in images])
        return list(self.model(pixels))


def test_forward_alone_carries_the_model() -> None:
    case = load_case("qwen_vl")
    encoder = ImageEncoder(SimpleQwenVisionModel(Checkpoint.open(GOLDEN / "qwen_vl")))

    async def run() -> list[ImageRows]:
        try:
            return await encoder.encode(case.images())
        finally:
            await encoder.close()

    rows = torch.stack([image.rows for image in asyncio.run(run())]).numpy()
    np.testing.assert_allclose(rows, case.expected["vision_features"], **case.tolerance)
