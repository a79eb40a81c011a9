"""Requests of an image each through lmdeploy's own image encoder, and through ours."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from _clip import random_image
from _llava import CLIP, TINY_CLIP, TINY_LLAMA, write_checkpoint
from measure import interleave, markdown_table, progress, ratios, spread
from PIL import Image

import vlcore
from vlcore.vision.model import VisionModel, encode_batch

NUM_LAYERS = 6
NUM_REQUESTS = 16
MAX_BATCH_SIZE = 8
IMAGE_SIZE = (640, 480)
TITLE = "## Next to lmdeploy's image encoder\n"


class Theirs:
    """lmdeploy's ``ImageEncoder`` over its LLaVA class, around transformers' modules."""

    def __init__(self, checkpoint: Path) -> None:
        from lmdeploy.messages import VisionConfig
        from lmdeploy.vl import engine
        from lmdeploy.vl.model.llava_hf import LlavaHfVisionModel
        from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration

        logging.getLogger("lmdeploy").setLevel(logging.ERROR)
        whole = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        model = LlavaHfVisionModel(str(checkpoint), hf_config=whole.config, backend="turbomind")
        vision: Any = whole.config.vision_config
        edge = vision.image_size
        model.processor = CLIPImageProcessorPil(
            size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}
        )
        model.n_token_per_image = (edge // vision.patch_size) ** 2
        model.model = SimpleNamespace(
            vision_tower=whole.model.vision_tower.eval(),
            multi_modal_projector=whole.model.multi_modal_projector.eval(),
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        self.num_forwards = 0
        whole.model.vision_tower.forward = self._counted(whole.model.vision_tower.forward)
        load, engine.load_vl_model = engine.load_vl_model, lambda *_, **__: model
        self.encoder = engine.ImageEncoder(
            str(checkpoint), "turbomind", vision_config=VisionConfig(max_batch_size=MAX_BATCH_SIZE)
        )
        engine.load_vl_model = load

    def _counted(self, forward: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.num_forwards += 1
            return forward(*arguments, **options)

        return counted

    async def encode(self, image: Image.Image) -> torch.Tensor:
        """Take the two steps of its pipeline."""
        messages = [{"role": "user", "content": [{"type": "image", "data": image}]}]
        messages = await self.encoder.preprocess(messages)
        messages = await self.encoder.async_infer(messages)
        rows: torch.Tensor = messages[-1]["content"][0]
        return rows

    def run(self, images: Sequence[Image.Image]) -> tuple[float, int]:
        """Run requests that arrive together; return the seconds and the number of forwards."""

        async def body() -> float:
            started = time.perf_counter()
            await asyncio.gather(*map(self.encode, images))
            return time.perf_counter() - started

        self.num_forwards = 0
        return asyncio.run(body()), self.num_forwards


def ours(
    model: VisionModel, images: Sequence[Image.Image], max_batch_size: int
) -> tuple[float, int]:
    """Run requests that arrive together; return the seconds and the number of forwards."""

    async def body() -> tuple[float, int]:
        async with vlcore.ImageEncoder(
            model, max_batch_size=max_batch_size, cache_bytes=0
        ) as encoder:
            started = time.perf_counter()
            await asyncio.gather(*(encoder.encode([image]) for image in images))
            return time.perf_counter() - started, encoder.stats().num_forwards

    return asyncio.run(body())


def report(clip: dict[str, int], rounds: int) -> str:
    """Measure and compare within a round."""
    images = [random_image(IMAGE_SIZE, seed) for seed in range(NUM_REQUESTS)]
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory)
        # Their code computes every layer whichever it takes; with the last one the work is equal.
        write_checkpoint(checkpoint, clip, TINY_LLAMA, "safetensors", vision_feature_layer=-1)
        theirs, model = Theirs(checkpoint), vlcore.load_vision_model(checkpoint)
        progress("the first forwards, which are slower")
        expected = asyncio.run(theirs.encode(images[0]))
        rows = encode_batch(model, [model.preprocess(images[0])])[0].rows
        difference = (rows - expected).abs().max().item()
        contenders = {
            "lmdeploy": partial(theirs.run, images),
            "one": partial(ours, model, images, 1),
            "many": partial(ours, model, images, MAX_BATCH_SIZE),
        }
        measured = interleave(rounds, contenders)
    seconds = {name: [one[0] for one in runs] for name, runs in measured.items()}
    forwards = {name: runs[-1][1] for name, runs in measured.items()}

    def row(label: str, name: str) -> tuple[object, ...]:
        speed = [NUM_REQUESTS / value for value in seconds[name]]
        share = "" if name == "lmdeploy" else spread(ratios(seconds["lmdeploy"], seconds[name]))
        return label, spread(speed), share, forwards[name]

    return (
        markdown_table(
            ["", "images/s", "times lmdeploy's (wanted >= 0.97)", "forwards (wanted <= 3)"],
            [
                row(f"lmdeploy {version('lmdeploy')}", "lmdeploy"),
                row("vlcore, max_batch_size 1", "one"),
                row(f"vlcore, max_batch_size {MAX_BATCH_SIZE}", "many"),
            ],
        )
        + f"\n\nLargest difference between their embeddings and ours: {difference:.1g}."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    if importlib.util.find_spec("lmdeploy") is None:
        print(TITLE)
        print(
            "Not measured here: lmdeploy is not installed. `make bench-lmdeploy` measures it in an "
            "environment of its own.\n"
        )
        print(markdown_table(["", "images/s"], [("lmdeploy", "not measured")]))
        return
    clip, rounds = (TINY_CLIP, 1) if options.quick else (CLIP, options.rounds)
    clip = clip | {"num_hidden_layers": 2 if options.quick else NUM_LAYERS}
    with redirect_stdout(sys.stderr):  # where lmdeploy's prints belong
        table = report(clip, rounds)
    print(TITLE)
    width, height = IMAGE_SIZE
    print(
        f"{NUM_REQUESTS} requests of a PIL image of {width} x {height} each that arrive together, "
        f"from images to embeddings; {clip['num_hidden_layers']} layers of a CLIP vision encoder "
        "of "
        f"width {clip['hidden_size']} and a LLaVA projector, the same random weights, float32 on "
        "the "
        f"CPU. lmdeploy runs its own `ImageEncoder`, with `max_batch_size` {MAX_BATCH_SIZE}; the "
        "model that it loads is replaced by transformers' modules and image processor, because its "
        "loader needs CUDA and fails on these versions of transformers. It batches the images of "
        "one "
        "request only, so its setting makes no difference here.\n"
    )
    print(table)


if __name__ == "__main__":
    main()
