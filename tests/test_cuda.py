"""The road on a CUDA device; ``make test-cuda`` runs these alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from checkpoints import write_llava
from golden_cases import load_case
from PIL import Image

import vlcore

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("name", ["llava15", "llava16_anyres", "yi_vl"])
def test_features_are_those_of_the_release(name: str) -> None:
    case = load_case(name)
    model = vlcore.load_vision_model(case.directory, "cuda", torch.float32)
    encoded = model.forward([model.preprocess(image) for image in case.images()])
    for index, image in enumerate(encoded):
        rows = image.rows if isinstance(image, vlcore.ImageRows) else image
        assert rows.device.type == "cuda"
        expected = torch.from_numpy(case.expected[f"features_{index}"])
        torch.testing.assert_close(rows.cpu(), expected, **case.facts["loose_tol"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_answers(tmp_path: Path, dtype: str) -> None:
    picture = Image.new("RGB", (40, 30), "red")
    with vlcore.pipeline(write_llava(tmp_path), device="cuda", dtype=dtype) as pipe:
        answers = pipe([("What?", picture), "Hello"], {"max_new_tokens": 4, "ignore_eos": True})
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
