"""The whole pipeline on a CUDA device; ``make test-cuda`` runs these tests alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_llava
from golden_cases import load_case
from PIL import Image
from torch import Tensor, nn

import vlcore
from vlcore.errors import PluginContractError
from vlcore.vision.device_runner import make_device_runner
from vlcore.vision.model import ImageInputs, VisionModel

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let convolutions in float32 compute in float32: by default, torch may take TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", ["llava15", "llava16_anyres", "qwen_vl_vision", "yi_vl"])
def test_features_are_those_of_the_cpu(name: str) -> None:
    """On the CPU they are compared with the reference, where Pillow is the one it resized with."""
    case = load_case(name)
    features = {}
    for device in ("cpu", "cuda"):
        model = vlcore.load_vision_model(case.directory, device, torch.float32)
        encoded = model.forward([model.preprocess(image) for image in case.images()])
        assert all(rows.device.type == device for rows in map(_rows_of, encoded))
        features[device] = [_rows_of(image).cpu() for image in encoded]
    for ours, expected in zip(features["cuda"], features["cpu"], strict=True):
        torch.testing.assert_close(ours, expected, **case.facts["loose_tol"])


def _rows_of(image: Tensor | vlcore.ImageRows) -> Tensor:
    return image.rows if isinstance(image, vlcore.ImageRows) else image


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_answers(tmp_path: Path, dtype: str) -> None:
    image = Image.new("RGB", (40, 30), "red")
    with vlcore.pipeline(write_llava(tmp_path), device="cuda", dtype=dtype) as pipe:
        answers = pipe([("What?", image), "Hello"], {"max_new_tokens": 4, "ignore_eos": True})
    assert [answer.raise_for_error().generate_token_len for answer in answers] == [4, 4]


def test_requests_that_come_and_go_are_answered_as_alone(tmp_path: Path) -> None:
    options = [
        {"max_new_tokens": 3 + seed, "ignore_eos": True}
        | ({"do_sample": True, "random_seed": seed} if seed % 2 else {})
        for seed in range(24)
    ]
    prompts = ["Tell me more. " * (1 + seed % 5) for seed in range(24)]
    with vlcore.pipeline(write_llava(tmp_path), device="cuda", dtype="float32") as pipe:

        async def together() -> list[vlcore.Response]:
            asked = zip(prompts, options, strict=True)
            return list(await asyncio.gather(*(pipe.ainfer(*one) for one in asked)))

        alone = [pipe(*asked) for asked in zip(prompts, options, strict=True)]
        assert [r.token_ids for r in asyncio.run(together())] == [r.token_ids for r in alone]


def test_nothing_but_the_chosen_tokens_comes_to_the_host(tmp_path: Path) -> None:
    options = {"max_new_tokens": 50, "ignore_eos": True, "do_sample": True, "top_p": 0.9}
    with vlcore.pipeline(write_llava(tmp_path), device="cuda", dtype="float32") as pipe:
        pipe("Hello", options)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            pipe("Hello", options)
    copies = [event for event in profile.events() if "DtoH" in event.name]
    assert len(copies) <= 50


def test_greedy_answers_are_those_of_the_cpu(tmp_path: Path) -> None:
    checkpoint = write_llava(tmp_path)
    prompts = [("What is this?", Image.new("RGB", (40, 30), "red")), "Hello", "Tell me more."]
    options = {"max_new_tokens": 8, "ignore_eos": True}
    token_ids = {}
    for device in ("cpu", "cuda"):
        with vlcore.pipeline(checkpoint, device=device, dtype="float32") as pipe:
            token_ids[device] = [answer.token_ids for answer in pipe(prompts, options)]
    assert token_ids["cuda"] == token_ids["cpu"]


# -- the image encoder


class Wide(VisionModel):
    """A vision encoder of a few layers, wide enough to keep the device busy."""

    hidden_size = 512

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(512, 512) for _ in range(8)]
        self._layers = nn.Sequential(*layers).to("cuda", dtype).requires_grad_(False)
        self.num_calls = 0

    def preprocess(self, image: Image.Image, **options: Any) -> ImageInputs:
        pixels = torch.randn(1, 3, 16, 512, generator=torch.Generator().manual_seed(image.width))
        return ImageInputs(pixels)

    def tower(self, pixels: Tensor) -> Tensor:
        self.num_calls += 1
        features: Tensor = self._layers(pixels.flatten(1, 2))
        return features

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:
        return features.flatten(0, 1)


class Waiting(Wide):
    """A vision encoder that waits for the device, so that it cannot be recorded."""

    def tower(self, pixels: Tensor) -> Tensor:
        features = super().tower(pixels)
        return features * float(features.abs().max() >= 0)


def random_images(num: int) -> list[Image.Image]:
    return [Image.new("L", (number + 1, 1)) for number in range(num)]


def encode(model: VisionModel, images: list[Image.Image], **options: Any) -> list[vlcore.ImageRows]:
    """The rows of images that come in requests of their own, twice in a row."""

    async def body() -> list[vlcore.ImageRows]:
        async with vlcore.ImageEncoder(model, cache_bytes=0, **options) as encoder:
            await asyncio.gather(*(encoder.encode([one]) for one in images))
            rows = await asyncio.gather(*(encoder.encode([one]) for one in images))
            return [image for (image,) in rows]

    return asyncio.run(body())


@pytest.mark.parametrize("max_batch_size", [1, 3, 8, 32])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_rows_are_those_of_the_tower_alone(max_batch_size: int, cuda_graphs: bool) -> None:
    model = Wide()
    images = random_images(64)
    encoded = encode(model, images, max_batch_size=max_batch_size, cuda_graphs=cuda_graphs)
    for image, rows in zip(images, encoded, strict=True):
        expected = model.tower(model.preprocess(image).pixels.cuda())[0]
        torch.testing.assert_close(rows.rows, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_size_is_recorded_once() -> None:
    model = Wide()
    replica = make_device_runner(model, rows_device=None, torch_compile=False, cuda_graphs=True)
    inputs = [model.preprocess(image) for image in random_images(4)]
    first = replica(inputs)
    num_calls = model.num_calls
    second = replica(inputs)
    assert model.num_calls == num_calls
    for one, two in zip(first, second, strict=True):
        assert isinstance(one, vlcore.ImageRows)
        assert isinstance(two, vlcore.ImageRows)
        assert one.rows.data_ptr() != two.rows.data_ptr()
        assert torch.equal(one.rows, two.rows)


def test_a_tower_that_waits_for_the_device_runs_without_graphs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = random_images(5)
    encoded = encode(Waiting(), images)
    assert "runs without CUDA graphs" in caplog.text
    for ours, theirs in zip(encoded, encode(Wide(), images, cuda_graphs=False), strict=True):
        torch.testing.assert_close(ours.rows, theirs.rows, rtol=1e-4, atol=1e-4)


def test_a_refused_recording_leaves_the_device_usable() -> None:
    encode(Waiting(), random_images(5))
    assert bool(torch.rand(8, device="cuda").isfinite().all())
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for _ in range(8):  # memory that two streams used is free again once both are done
        block = torch.empty(256 * 1024**2, dtype=torch.uint8, device="cuda")
        block.record_stream(side)
        del block
        torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() - before <= 512 * 1024**2


@pytest.mark.parametrize("rows_device", ["cpu", "cuda", None])
def test_rows_are_kept_where_they_are_wanted(rows_device: str | None) -> None:
    for image in encode(Wide(), random_images(3), rows_device=rows_device):
        assert image.rows.device.type == (rows_device or "cuda")
        assert torch.isfinite(image.rows).all()


def test_a_compiled_tower_gives_the_same_rows() -> None:
    images = random_images(6)
    compiled = encode(Wide(), images, torch_compile=True)
    for ours, theirs in zip(compiled, encode(Wide(), images), strict=True):
        torch.testing.assert_close(ours.rows, theirs.rows, rtol=1e-4, atol=1e-4)


def test_copies_overlap_with_the_tower() -> None:
    """While one batch computes, the next is copied on another stream."""
    model = Wide()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        encode(model, random_images(256), max_batch_size=16)
    events = [event for event in profile.events() if event.device_type.name == "CUDA"]
    copies = {event.device_resource_id for event in events if "HtoD" in event.name}
    kernels = {event.device_resource_id for event in events if "gemm" in event.name.lower()}
    assert copies
    assert kernels
    assert copies.isdisjoint(kernels)


def test_nan_on_the_device_fails_its_image_alone() -> None:
    class Broken(Wide):
        def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:
            rows = super().assemble(features, inputs)
            return rows * float("nan") if inputs.layout == "bad" else rows

    model = Broken()
    inputs = [model.preprocess(image) for image in random_images(3)]
    inputs[1] = ImageInputs(inputs[1].pixels, layout="bad")
    replica = make_device_runner(model, rows_device=None, torch_compile=False, cuda_graphs=True)
    kinds = [type(image) for image in replica(inputs)]
    assert kinds == [vlcore.ImageRows, PluginContractError, vlcore.ImageRows]


def test_out_of_memory_on_the_device_halves_the_batch() -> None:
    class Greedy(Wide):
        def tower(self, pixels: Tensor) -> Tensor:
            share = torch.cuda.mem_get_info()[1] // 6
            torch.empty(len(pixels) * share, dtype=torch.uint8, device="cuda")
            return super().tower(pixels)

    images = random_images(8)
    encoded = encode(Greedy(), images, cuda_graphs=False)
    for ours, theirs in zip(encoded, encode(Wide(), images), strict=True):
        torch.testing.assert_close(ours.rows, theirs.rows, rtol=1e-4, atol=1e-4)


def test_a_tower_half_of_which_waits_on_the_host_gives_the_same_rows(tmp_path: Path) -> None:
    directory = write_llava(tmp_path)
    whole = vlcore.load_vision_model(directory, "cuda")
    parts: dict[str, int | str | torch.device] = {
        "embeddings": 0,
        "pre_layrnorm": 0,
        "encoder": "cpu",
    }
    halves = vlcore.load_vision_model(directory, "cuda", device_map=parts)
    images = [Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")]
    for ours, theirs in zip(encode(halves, images), encode(whole, images), strict=True):
        torch.testing.assert_close(ours.rows, theirs.rows)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_replicas_on_two_devices_answer_alike(tmp_path: Path) -> None:
    checkpoint = write_llava(tmp_path)
    prompts = [("What?", Image.new("RGB", (40, 30), (20 * n, 0, 0))) for n in range(12)]
    options = {"max_new_tokens": 4, "ignore_eos": True}
    answers = []
    for devices in ([0], [0, 1]):
        with vlcore.pipeline(
            checkpoint, device="cuda:0", dtype="float32", vision_devices=devices, max_batch_size=2
        ) as pipe:
            answers.append([answer.token_ids for answer in pipe(prompts, options)])
    assert answers[0] == answers[1]
