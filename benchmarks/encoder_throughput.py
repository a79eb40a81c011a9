"""The image encoder under load and alone, next to its vision model called directly."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from _clip import EDGE, LARGE, TINY, random_image, random_model
from measure import interleave, markdown_table, progress, ratios, spread
from PIL import Image

from vlcore.clip import ClipVisionModel
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import ImageInputs, encode_batch

NUM_LAYERS = 6
NUM_REQUESTS = 16
BATCH_SIZES = (1, 2, 4, 8)
IMAGE_SIZE = (640, 480)


def bare(model: ClipVisionModel, ready: Sequence[ImageInputs], batch_size: int) -> float:
    """Time the vision model called in a loop, on preprocessed pixels, in seconds."""
    started = time.perf_counter()
    for first in range(0, len(ready), batch_size):
        encode_batch(model, ready[first : first + batch_size])
    return time.perf_counter() - started


def encoder(model: ClipVisionModel, images: Sequence[Image.Image], batch_size: int) -> float:
    """Time requests of an image each that arrive together, until all are encoded, in seconds."""

    async def body() -> float:
        async with ImageEncoder(model, max_batch_size=batch_size, cache_bytes=0) as encoder:
            started = time.perf_counter()
            await asyncio.gather(*(encoder.encode([image]) for image in images))
            return time.perf_counter() - started

    return asyncio.run(body())


def best_batch_size(model: ClipVisionModel, ready: Sequence[ImageInputs], rounds: int) -> int:
    """Return the batch size at which the vision model alone is fastest."""
    contenders = {size: partial(bare, model, ready, size) for size in BATCH_SIZES}
    measured = interleave(rounds, contenders)
    return min(BATCH_SIZES, key=lambda size: statistics.median(measured[size]))


def report(shape: dict[str, Any], num_layers: int, rounds: int) -> str:
    """Measure and compare within a round."""
    model = random_model(shape, num_layers)
    images = [random_image(IMAGE_SIZE, seed) for seed in range(NUM_REQUESTS)]
    ready = [model.preprocess(image) for image in images]
    progress("the first forwards, which are slower")
    bare(model, ready, 1)
    size = best_batch_size(model, ready, min(rounds, 2))
    together = interleave(
        rounds,
        {
            "bare": partial(bare, model, ready, size),
            "encoder": partial(encoder, model, images, size),
        },
    )
    alone = interleave(
        4 * rounds,
        {
            "bare": partial(bare, model, ready[:1], 1),
            "encoder": partial(encoder, model, images[:1], 1),
        },
    )
    slower = [1 / ratio - 1 for ratio in ratios(alone["bare"], alone["encoder"])]
    more_ms = [
        (ours - theirs) * 1000 for ours, theirs in zip(alone["encoder"], alone["bare"], strict=True)
    ]
    throughput = [NUM_REQUESTS / seconds for seconds in together["encoder"]]
    return markdown_table(
        ["", "median (min..max)", "wanted"],
        [
            (f"the vision model alone is fastest in batches of, of {BATCH_SIZES}", size, ""),
            (f"{NUM_REQUESTS} requests, images/s", spread(throughput), ""),
            (
                "… as a share of the vision model's alone",
                spread(ratios(together["bare"], together["encoder"])),
                ">= 0.95",
            ),
            ("one request, longer by %", spread([100 * share for share in slower], 1), "<= 3, or"),
            ("one request, longer by ms", spread(more_ms, 1), "<= 2"),
        ],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    shape, layers, rounds = (TINY, 2, 1) if options.quick else (LARGE, NUM_LAYERS, options.rounds)
    print("## The image encoder under load\n")
    print(
        f"{layers} layers of a CLIP vision encoder of width {shape['hidden_size']} (ViT-L/14 has "
        "24 "
        f"of 1024) at {EDGE} pixels and a projector, random weights, float32 on the CPU. The "
        "vision "
        "model alone is called in a loop on pixels that are ready; requests bring a PIL image of "
        f"{IMAGE_SIZE[0]} x {IMAGE_SIZE[1]} each, arrive together, and are preprocessed too.\n"
    )
    print(report(shape, layers, rounds))


if __name__ == "__main__":
    main()
