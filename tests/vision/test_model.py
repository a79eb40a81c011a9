from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vlcore import ImageInputs, ImageRows, VisionModel
from vlcore.errors import PluginContractError
from vlcore.vision.model import encode_batch


class WholeModel(VisionModel):
    """Writes ``forward`` alone, as a first plugin does."""

    hidden_size = 4

    def forward(self, inputs: Any) -> list[Tensor]:
        return [torch.full((image.width, 4), float(image.height)) for image in inputs]


class TiledModel(VisionModel):
    """Writes the pair from which ``forward`` is built."""

    hidden_size = 3

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.note = "not a tensor"
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.batches: list[Tensor] = []

    def tower(self, pixels: Tensor) -> Tensor:
        self.batches.append(pixels)
        features: Tensor = pixels.flatten(2).transpose(1, 2) * self.scale
        return features  # [N, H * W, 3]

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:
        rows: Tensor = features.flatten(0, 1) + inputs.layout
        return rows


def rows_of(results: Sequence[Tensor | ImageRows]) -> list[Tensor]:
    return [image.rows if isinstance(image, ImageRows) else image for image in results]


def tiles(*values: float, layout: float = 0.0) -> ImageInputs:
    return ImageInputs(torch.stack([torch.full((3, 1, 2), value) for value in values]), layout)


def test_preprocess_gives_the_image_itself() -> None:
    image = Image.new("RGBA", (2, 3))
    assert WholeModel().preprocess(image) is image


def test_the_full_resolution_is_needed_by_default() -> None:
    assert WholeModel().needed_size((4000, 3000)) is None


def test_preprocess_refuses_unknown_options() -> None:
    with pytest.raises(TypeError, match="unexpected image options: detail, max_pixels"):
        WholeModel().preprocess(Image.new("RGB", (1, 1)), max_pixels=3, detail="low")


def test_forward_alone_is_enough() -> None:
    model = WholeModel()
    rows = encode_batch(model, [Image.new("RGB", (2, 3)), Image.new("RGB", (1, 5))])
    assert [image.rows.tolist() for image in rows] == [[[3.0] * 4] * 2, [[5.0] * 4]]
    assert [image.layout for image in rows] == [None, None]


def test_calling_the_model_is_forward() -> None:
    assert rows_of(WholeModel()([Image.new("RGB", (1, 1))]))[0].shape == (1, 4)


def test_tiles_of_different_images_share_a_batch() -> None:
    model = TiledModel()
    images = model.forward([tiles(1.0, 2.0, layout=0.5), tiles(3.0, layout=-1.0)])
    assert [batch.shape for batch in model.batches] == [(3, 3, 1, 2)]
    assert [isinstance(image, ImageRows) and image.layout for image in images] == [0.5, -1.0]
    first, second = rows_of(images)
    assert first.tolist() == [[2.5] * 3] * 2 + [[4.5] * 3] * 2
    assert second.tolist() == [[5.0] * 3] * 2


def test_assemble_may_return_another_layout() -> None:
    class Laid(TiledModel):
        def assemble(self, features: Tensor, inputs: ImageInputs) -> Any:
            return ImageRows(features[0], "its own")

    assert encode_batch(Laid(), [tiles(1.0)])[0].layout == "its own"


def test_forward_moves_pixels_to_the_weights_dtype() -> None:
    model = TiledModel(torch.float64)
    assert rows_of(model.forward([tiles(1.0)]))[0].dtype == torch.float64
    assert model.batches[0].dtype == torch.float64


def test_forward_keeps_no_gradients() -> None:
    assert not rows_of(TiledModel().forward([tiles(1.0)]))[0].requires_grad


def test_device_and_dtype_are_those_of_the_first_tensor() -> None:
    class Modular(VisionModel):
        hidden_size = 2

        def __init__(self) -> None:
            self.empty = nn.Identity()
            self.layer = nn.Linear(2, 2, dtype=torch.float16, device="meta")
            self.later = torch.zeros(1)

    assert Modular().dtype == torch.float16
    assert Modular().device.type == "meta"
    assert WholeModel().dtype == torch.float32
    assert WholeModel().device.type == "cpu"


def test_a_model_without_forward_and_tower_raises() -> None:
    class Nothing(VisionModel):
        hidden_size = 1

    with pytest.raises(NotImplementedError, match="Nothing must define `forward`, or both"):
        Nothing().forward([tiles(1.0)])


def test_a_tower_without_assemble() -> None:
    class Half(VisionModel):
        hidden_size = 1

        def tower(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(2)

    with pytest.raises(NotImplementedError, match="Half must define `forward`, or both"):
        Half().forward([tiles(1.0)])


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], r"it returned 0 result\(s\)"),
        ([torch.zeros(1, 4)] * 3, r"it returned 3 result\(s\)"),
        ([torch.zeros(1, 4), torch.zeros(1, 5)], r"shape \[k, 4\]; it returned \[1, 5\]"),
        ([torch.zeros(4), torch.zeros(1, 4)], r"it returned \[4\]"),
        ([torch.zeros(1, 1, 4), torch.zeros(1, 4)], r"it returned \[1, 1, 4\]"),
        ([torch.zeros(1, 4), None], "it returned NoneType"),
        ([torch.zeros(1, 4), torch.full((1, 4), torch.nan)], "NaN or Inf"),
        ([torch.full((1, 4), torch.inf), torch.zeros(1, 4)], "NaN or Inf"),
    ],
)
def test_invalid_embeddings_are_refused(results: list[Any], message: str) -> None:
    class Odd(VisionModel):
        hidden_size = 4

        def forward(self, inputs: Any) -> Any:
            return results

    with pytest.raises(PluginContractError, match=f"Odd.forward .*{message}"):
        encode_batch(Odd(), [None, None])


def test_an_image_may_have_no_rows() -> None:
    class Empty(VisionModel):
        hidden_size = 4

        def forward(self, inputs: Any) -> Any:
            return [torch.zeros(0, 4)]

    assert encode_batch(Empty(), [None])[0].rows.shape == (0, 4)


class WideModel(VisionModel):
    """Returns embeddings with what is added after two decoder layers."""

    hidden_size = 4

    def __init__(self) -> None:
        self.row_width = 12

    def forward(self, inputs: Sequence[Any]) -> Sequence[Tensor | ImageRows]:
        return [torch.zeros(1, width) for width in inputs]


def test_embeddings_may_be_wider_than_the_language_model() -> None:
    assert [image.rows.shape for image in encode_batch(WideModel(), [12])] == [(1, 12)]
    with pytest.raises(PluginContractError, match=r"shape \[k, 12\]; it returned \[1, 4\]"):
        encode_batch(WideModel(), [4])
