"""What the image encoder saves, and preprocessing beside transformers' own."""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from _clip import EDGE, TINY, picture, random_model
from measure import interleave, markdown_table, progress, ratios, spread
from PIL import Image
from transformers import CLIPImageProcessorPil

from vlcore.clip import ClipProcessor, ClipVisionModel
from vlcore.encoder import ImageEncoder
from vlcore.encoder_stats import EncoderStats
from vlcore.media import decode_image

MID_SIZE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
NUM_LAYERS = 4
NUM_REQUESTS = 16
MAX_BATCH_SIZE = 8
FULL_HD, TWELVE_MEGAPIXELS = (1920, 1080), (4000, 3000)


def encode(model: ClipVisionModel, requests: Sequence[Image.Image], **options: Any) -> EncoderStats:
    """What an encoder did for requests of an image each that arrive together."""

    async def body() -> EncoderStats:
        async with ImageEncoder(model, max_batch_size=MAX_BATCH_SIZE, **options) as encoder:
            await asyncio.gather(*(encoder.encode([image]) for image in requests))
            return encoder.stats()

    return asyncio.run(body())


def cached_milliseconds(model: ClipVisionModel, data: bytes, rounds: int) -> list[float]:
    """From the bytes of a file, whose rows are kept, to these rows."""

    async def body() -> list[float]:
        async with ImageEncoder(model) as encoder:
            await encoder.encode([data])
            return [await one(encoder) for _ in range(rounds)]

    async def one(encoder: ImageEncoder) -> float:
        started = time.perf_counter()
        await encoder.encode([data])
        return (time.perf_counter() - started) * 1000

    return asyncio.run(body())


def as_jpeg(image: Image.Image) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def milliseconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def runtime_report(model: ClipVisionModel, rounds: int) -> str:
    """Count what batching and sharing save."""
    pictures = [picture((640, 480), seed) for seed in range(NUM_REQUESTS)]
    progress("16 requests")
    forwards = [encode(model, pictures, cache_bytes=0).num_forwards for _ in range(rounds)]
    progress("64 requests over 8 images")
    shared = encode(model, pictures[:8] * 8)
    data = as_jpeg(picture(FULL_HD))
    cached = cached_milliseconds(model, data, 50)
    file = f"{FULL_HD[0]} x {FULL_HD[1]} JPEG of {len(data) // 1024} KiB"
    rows = [
        (f"16 requests, forwards in batches of {MAX_BATCH_SIZE}", spread(forwards, 0), "<= 3"),
        ("64 requests over 8 images, images computed", shared.num_encoded, "8"),
        (f"a {file} whose rows are kept, ms", spread(cached), "<= 2"),
    ]
    return markdown_table(["", "median (min..max)", "wanted"], rows)


def preprocessing_report(sizes: Sequence[tuple[int, int]], rounds: int) -> str:
    """Measure preprocessing in one thread."""
    ours = ClipProcessor.from_json({}, EDGE, "the defaults")
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE}
    )

    def from_jpeg(data: bytes) -> torch.Tensor:
        return ours(decode_image(data, "a JPEG"))

    rows = []
    for size in sizes:
        image = picture(size)
        data = as_jpeg(image)
        measured = interleave(
            rounds,
            {
                "ours": partial(milliseconds, partial(ours, image)),
                "theirs": partial(milliseconds, partial(theirs, image, return_tensors="pt")),
                "jpeg": partial(milliseconds, partial(from_jpeg, data)),
            },
        )
        expected: torch.Tensor = theirs(image, return_tensors="pt")["pixel_values"][0]
        rows.append(
            (
                f"{size[0]} x {size[1]}",
                spread(measured["ours"], 1),
                spread(ratios(measured["theirs"], measured["ours"])),
                f"{(ours(image) - expected).abs().max().item():g}",
                f"{statistics.median(measured['jpeg']):.1f}",
            )
        )
    return markdown_table(
        ["", "ms", "times faster (wanted >= 2)", "largest difference", "from JPEG, ms"], rows
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    rounds, shape = (1, TINY) if options.quick else (options.rounds, MID_SIZE)
    sizes = [FULL_HD] if options.quick else [FULL_HD, TWELVE_MEGAPIXELS]
    print("## The image encoder\n")
    print(
        f"A random CLIP tower of {NUM_LAYERS} layers of width {shape['hidden_size']} at {EDGE} "
        f"pixels, in float32 on the CPU, max_batch_size {MAX_BATCH_SIZE}. Requests bring a PIL "
        "image of 640 x 480 each and arrive together.\n"
    )
    print(runtime_report(random_model(shape, NUM_LAYERS), rounds))
    print(
        "\nPreprocessing for a CLIP tower in one thread, from a decoded picture, beside "
        "transformers' own CLIPImageProcessorPil with the same settings.\n"
    )
    print(preprocessing_report(sizes, 1 if options.quick else 4 * rounds))


if __name__ == "__main__":
    main()
