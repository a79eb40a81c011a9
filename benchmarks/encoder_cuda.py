"""The image encoder on a GPU, beside its tower replayed as a CUDA graph."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from _clip import EDGE, LARGE, TINY, picture, random_model
from measure import interleave, markdown_table, progress, ratios, spread

from vlcore.clip import ClipVisionModel
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import ImageInputs
from vlcore.vision.preprocessing import PreparedImage

NUM_LAYERS = 23
BATCH_SIZES = (1, 8, 32)
NUM_IMAGES = 512
DTYPE = torch.float16
TITLE = "## The image encoder on a GPU\n"


def graph_of(model: ClipVisionModel, batch_size: int) -> torch.cuda.CUDAGraph:
    """The tower over a batch that lies on the device already."""
    pixels = torch.randn(batch_size, 3, EDGE, EDGE, device="cuda", dtype=DTYPE)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(3):
                model.tower(pixels)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model.tower(pixels)
    return graph


def bare(graph: torch.cuda.CUDAGraph, batch_size: int) -> float:
    """Images/s of replays one after another."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(NUM_IMAGES // batch_size):
        graph.replay()
    torch.cuda.synchronize()
    return NUM_IMAGES / (time.perf_counter() - started)


def encoder(model: ClipVisionModel, ready: Sequence[ImageInputs], batch_size: int) -> float:
    """Images/s of requests of an image each, from preprocessed pixels on the host to rows."""
    images = [PreparedImage(str(n), str(n), one) for n, one in enumerate(ready)]

    async def body() -> float:
        async with ImageEncoder(model, max_batch_size=batch_size, cache_bytes=0) as encoder:
            await encoder.encode_prepared(images[: 4 * batch_size])
            started = time.perf_counter()
            await asyncio.gather(*(encoder.encode_prepared([image]) for image in images))
            return len(images) / (time.perf_counter() - started)

    return asyncio.run(body())


def peak_flops() -> float:
    """Floating-point operations per second of a large matrix product."""
    left = right = torch.randn(8192, 8192, device="cuda", dtype=DTYPE)
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        left @ right
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started)


def flops_per_image(model: ClipVisionModel) -> float:
    """Operations of all products of the tower over one image."""
    from torch.utils.flop_counter import FlopCounterMode

    pixels = torch.randn(1, 3, EDGE, EDGE, device="cuda", dtype=DTYPE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.tower(pixels)
    return float(counter.get_total_flops())


def overlap(model: ClipVisionModel, ready: Sequence[ImageInputs]) -> float:
    """The share of the copies to the device that ran while kernels did."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        encoder(model, ready, 8)
    on_device = [event for event in profile.events() if event.device_type.name == "CUDA"]

    def spans(copies: bool) -> list[tuple[float, float]]:
        return sorted(
            (event.time_range.start, event.time_range.end)
            for event in on_device
            if ("HtoD" in event.name) == copies and ("Mem" not in event.name or copies)
        )

    kernels = spans(copies=False)
    copied = spans(copies=True)
    total = sum(end - start for start, end in copied)
    covered = sum(
        max(0.0, min(end, stop) - max(start, begin))
        for start, end in copied
        for begin, stop in kernels
        if begin < end and start < stop
    )
    return covered / total if total else 0.0


def report(shape: dict[str, Any], num_layers: int, rounds: int) -> str:
    """Measure and compare within a round."""
    model = random_model(shape, num_layers)
    for module in (model._tower, model._projector):
        module.to("cuda", DTYPE)
    image = model.preprocess(picture((640, 480)))
    draws = torch.randn(NUM_IMAGES, 1, 1, 1, 1)
    ready = [ImageInputs(image.pixels + draw) for draw in draws]
    peak, per_image = peak_flops(), flops_per_image(model)
    rows = []
    for size in BATCH_SIZES:
        progress(f"batches of {size}")
        measured = interleave(
            rounds,
            {
                "bare": partial(bare, graph_of(model, size), size),
                "encoder": partial(encoder, model, ready, size),
            },
        )
        share = [speed * per_image / peak for speed in measured["encoder"]]
        rows.append(
            (
                f"batches of {size}",
                spread(measured["bare"], 0),
                spread(measured["encoder"], 0),
                spread(ratios(measured["encoder"], measured["bare"])),
                spread(share),
            )
        )
    table = markdown_table(
        [
            torch.cuda.get_device_name(),
            "tower replayed, images/s",
            "encoder, images/s",
            "share (wanted >= 0.95)",
            f"of the product's {peak / 1e12:.0f} TFLOP/s",
        ],
        rows,
    )
    hidden = overlap(model, ready)
    return f"{table}\n\nOf the copies to the device, {hidden:.0%} ran beside kernels."


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round")
    options = parser.parse_args()
    print(TITLE)
    if not torch.cuda.is_available():
        print("Not measured here: torch sees no CUDA device. Run it where there is one.\n")
        print(markdown_table(["", "images/s"], [("batches of 1, 8 and 32", "not measured")]))
        return
    shape, layers, rounds = (TINY, 2, 1) if options.quick else (LARGE, NUM_LAYERS, options.rounds)
    print(
        f"{layers} layers of a CLIP tower of width {shape['hidden_size']} at {EDGE} pixels and a "
        f"projector, random weights, {DTYPE}. The tower alone is replayed as a CUDA graph on "
        "pixels that lie on the device; the encoder takes requests of one preprocessed image each "
        "from the host's memory, checks their rows and gives each request its own.\n"
    )
    print(report(shape, layers, rounds))


if __name__ == "__main__":
    main()
