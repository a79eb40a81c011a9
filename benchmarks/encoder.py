"""What the image encoder saves."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

from _clip import EDGE, TINY, as_jpeg, random_image, random_model
from measure import markdown_table, progress, spread
from PIL import Image

from vlcore.clip import ClipVisionModel
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.stats import EncoderStats

MID_SIZE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
NUM_LAYERS = 4
NUM_REQUESTS = 16
MAX_BATCH_SIZE = 8
FULL_HD = (1920, 1080)


def encode(model: ClipVisionModel, requests: Sequence[Image.Image], **options: Any) -> EncoderStats:
    """Encode one image per request, all at once, and return the encoder's statistics."""

    async def body() -> EncoderStats:
        async with ImageEncoder(model, max_batch_size=MAX_BATCH_SIZE, **options) as encoder:
            await asyncio.gather(*(encoder.encode([image]) for image in requests))
            return encoder.stats()

    return asyncio.run(body())


def cached_milliseconds(model: ClipVisionModel, data: bytes, rounds: int) -> list[float]:
    """Time the way from the bytes of a file to its cached embeddings."""

    async def body() -> list[float]:
        async with ImageEncoder(model) as encoder:
            await encoder.encode([data])
            return [await one(encoder) for _ in range(rounds)]

    async def one(encoder: ImageEncoder) -> float:
        started = time.perf_counter()
        await encoder.encode([data])
        return (time.perf_counter() - started) * 1000

    return asyncio.run(body())


def runtime_report(model: ClipVisionModel, rounds: int) -> str:
    """Count what batching and deduplication save."""
    images = [random_image((640, 480), seed) for seed in range(NUM_REQUESTS)]
    progress("16 requests")
    forwards = [encode(model, images, cache_bytes=0).num_forwards for _ in range(rounds)]
    progress("64 requests over 8 images")
    shared = encode(model, images[:8] * 8)
    data = as_jpeg(random_image(FULL_HD))
    cached = cached_milliseconds(model, data, 50)
    file = f"{FULL_HD[0]} x {FULL_HD[1]} JPEG of {len(data) // 1024} KiB"
    rows = [
        (f"16 requests, forwards in batches of {MAX_BATCH_SIZE}", spread(forwards, 0), "<= 3"),
        ("64 requests over 8 images, images computed", shared.num_encoded, "8"),
        (f"a {file} with cached embeddings, ms", spread(cached), "<= 2"),
    ]
    return markdown_table(["", "median (min..max)", "wanted"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    rounds, shape = (1, TINY) if options.quick else (options.rounds, MID_SIZE)
    print("## The image encoder\n")
    print(
        f"A random CLIP vision encoder of {NUM_LAYERS} layers of width {shape['hidden_size']} at "
        f"{EDGE} pixels, in float32 on the CPU, max_batch_size {MAX_BATCH_SIZE}. Requests bring a "
        "PIL image of 640 x 480 each and arrive together.\n"
    )
    print(runtime_report(random_model(shape, NUM_LAYERS), rounds))


if __name__ == "__main__":
    main()
