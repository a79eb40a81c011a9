from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vlcore.errors import PluginContractError
from vlcore.vision.device_runner import DeviceRunner, make_device_runner
from vlcore.vision.model import ImageInputs, ImageRows, VisionModel


class Tiled(VisionModel):
    """Gives each tile's mean as a row."""

    hidden_size = 3

    def __init__(self) -> None:
        self.weight = torch.ones(1, dtype=torch.float64)
        self.shapes: list[tuple[int, ...]] = []

    def tower(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.float64
        self.shapes.append(tuple(pixels.shape))
        return pixels.mean(dim=(2, 3))[:, None] * self.weight

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:
        return features.flatten(0, 1)


def tiles(*values: float) -> ImageInputs:
    pixels = torch.tensor(values)[:, None, None, None].expand(-1, 3, 2, 2)
    return ImageInputs(pixels, layout=len(values))


def rows_of(image: ImageRows | PluginContractError) -> list[float]:
    assert isinstance(image, ImageRows)
    return image.rows[:, 0].tolist()


def test_tiles_of_all_images_are_encoded_in_one_call() -> None:
    model = Tiled()
    one, two = DeviceRunner(model)([tiles(1, 2, 3), tiles(4)])
    assert (rows_of(one), rows_of(two)) == ([1, 2, 3], [4])
    assert isinstance(one, ImageRows)
    assert one.layout == 3
    assert model.shapes == [(4, 3, 2, 2)]


def test_embeddings_are_those_of_the_forward_pass() -> None:
    model = Tiled()
    inputs = [tiles(1, 2), tiles(5)]
    for ours, theirs in zip(DeviceRunner(model)(inputs), model.forward(inputs), strict=True):
        assert isinstance(ours, ImageRows)
        assert isinstance(theirs, ImageRows)
        assert torch.equal(ours.rows, theirs.rows)


def test_an_image_with_nan_fails_alone() -> None:
    good, bad = DeviceRunner(Tiled())([tiles(1), tiles(2, float("nan"))])
    assert rows_of(good) == [1]
    assert isinstance(bad, PluginContractError)
    assert "Tiled.forward returned NaN or Inf" in str(bad)


def test_zero_embeddings_are_finite() -> None:
    (image,) = DeviceRunner(Tiled())([ImageInputs(torch.empty(0, 3, 2, 2))])
    assert rows_of(image) == []


def test_a_plugins_own_forward_receives_the_list() -> None:
    class Own(VisionModel):
        hidden_size = 2

        def forward(self, inputs: Sequence[Any]) -> Sequence[Tensor]:
            return [torch.full((1, 2), float(number)) for number in inputs]

    assert [rows_of(image) for image in DeviceRunner(Own())([3, 4])] == [[3], [4]]


def test_embeddings_are_moved_to_rows_device() -> None:
    (image,) = DeviceRunner(Tiled(), rows_device=torch.device("meta"))([tiles(1)])
    assert isinstance(image, ImageRows)
    assert image.rows.is_meta
    assert image.layout == 1


def test_the_tower_is_compiled_with_the_options() -> None:
    model = Tiled()
    compiled: list[int] = []

    def backend(module: Any, inputs: Sequence[Any]) -> Any:
        compiled.append(len(inputs))
        return module.forward

    replica = DeviceRunner(model, torch_compile={"backend": backend})
    assert rows_of(replica([tiles(1, 2)])[0]) == [1, 2]
    assert compiled


@pytest.mark.parametrize("torch_compile", [True, {"backend": "inductor"}])
def test_a_model_without_a_tower_is_not_compiled(torch_compile: Any) -> None:
    class Own(VisionModel):
        hidden_size = 2

        def forward(self, inputs: Sequence[Any]) -> Sequence[Tensor]:
            return [torch.zeros(1, 2) for _ in inputs]

    replica = DeviceRunner(Own(), torch_compile=torch_compile)
    assert rows_of(replica([None])[0]) == [0]


def test_a_model_on_the_cpu_has_one_batch_at_a_time() -> None:
    replica = make_device_runner(Tiled(), rows_device=None, torch_compile=False, cuda_graphs=True)
    assert (type(replica), replica.num_concurrent_batches) == (DeviceRunner, 1)


def test_embeddings_for_cuda_go_to_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of a runner may have another current device than the caller."""
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    for given, expected in (("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")):
        runner = make_device_runner(
            Tiled(), rows_device=torch.device(given), torch_compile=False, cuda_graphs=True
        )
        assert runner._rows_device == torch.device(expected)
