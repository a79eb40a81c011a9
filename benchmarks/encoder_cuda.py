"""The image encoder on a GPU, next to the bare model, eager and replayed as a CUDA graph."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from _clip import EDGE, LARGE, TINY, random_image, random_model
from _cuda import DRY_RUN, device, device_name, parser, record, synchronize
from measure import interleave, markdown_table, progress, ratios, spread

from vlcore.clip import ClipVisionModel
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import ImageInputs
from vlcore.vision.prepared_image import PreparedImage

NUM_LAYERS = 23
BATCH_SIZES = (1, 8, 32)
NUM_IMAGES = 512
TITLE = "## The image encoder on a GPU\n"


def pixels_on_device(model: ClipVisionModel, batch_size: int) -> torch.Tensor:
    """Random pixels of a batch, [batch_size, 3, EDGE, EDGE]."""
    return torch.randn(batch_size, 3, EDGE, EDGE, device=model.device, dtype=model.dtype)


def bare(launch: Callable[[], object], batch_size: int, num_images: int) -> float:
    """Images/s of batches launched one after another."""
    synchronize()
    started = time.perf_counter()
    for _ in range(num_images // batch_size):
        launch()
    synchronize()
    return num_images / (time.perf_counter() - started)


def encoder(model: ClipVisionModel, ready: Sequence[ImageInputs], batch_size: int) -> float:
    """Images/s of requests of one image each, from preprocessed pixels to image embeddings."""
    images = [PreparedImage(str(n), str(n), one) for n, one in enumerate(ready)]

    async def body() -> float:
        async with ImageEncoder(model, max_batch_size=batch_size, cache_bytes=0) as encoder:
            await encoder.encode_prepared(images[: 4 * batch_size])
            started = time.perf_counter()
            await asyncio.gather(*(encoder.encode_prepared([image]) for image in images))
            return len(images) / (time.perf_counter() - started)

    return asyncio.run(body())


def peak_flops(model: ClipVisionModel, size: int) -> float:
    """Floating-point operations per second of a large matrix product."""
    left = right = torch.randn(size, size, device=model.device, dtype=model.dtype)
    for _ in range(3):
        left @ right
    synchronize()
    started = time.perf_counter()
    for _ in range(20):
        left @ right
    synchronize()
    return 20 * 2 * size**3 / (time.perf_counter() - started)


def flops_per_image(model: ClipVisionModel) -> float:
    """Operations of all products of the model over one image."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.tower(pixels_on_device(model, 1))
    return float(counter.get_total_flops())


def overlap(model: ClipVisionModel, ready: Sequence[ImageInputs]) -> float:
    """The share of the time of copies to the device during which kernels ran."""
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


def report(shape: dict[str, Any], num_layers: int, rounds: int, num_images: int) -> str:
    """Measure and compare within a round."""
    model = random_model(shape, num_layers)
    on_cuda = device().type == "cuda"
    for module in (model._tower, model._projector):
        module.to(device(), torch.float16 if on_cuda else torch.float32)
    image = model.preprocess(random_image((640, 480)))
    ready = [ImageInputs(image.pixels + draw) for draw in torch.randn(num_images, 1, 1, 1, 1)]
    peak, per_image = peak_flops(model, 8192 if on_cuda else 64), flops_per_image(model)
    rows, best = [], {}
    for size in BATCH_SIZES:
        progress(f"batches of {size}")
        work = partial(model.tower, pixels_on_device(model, size))
        with torch.inference_mode():
            measured = interleave(
                rounds,
                {
                    "eager": partial(bare, work, size, num_images),
                    "replayed": partial(bare, record(work), size, num_images),
                    "encoder": partial(encoder, model, ready, size),
                },
            )
        best[size] = statistics.median(measured["encoder"])
        share = [speed * per_image / peak for speed in measured["encoder"]]
        rows.append(
            (
                f"batches of {size}",
                spread(measured["eager"], 0),
                spread(measured["replayed"], 0),
                spread(measured["encoder"], 0),
                spread(ratios(measured["encoder"], measured["replayed"])),
                spread(share),
            )
        )
    table = markdown_table(
        [
            "",
            "bare model, images/s",
            "bare model replayed, images/s",
            "encoder, images/s",
            "encoder by replay (wanted >= 0.95 in batches of 8)",
            f"of the {peak / 1e12:.0f} TFLOP/s of a matrix product",
        ],
        rows,
    )
    smallest, largest = BATCH_SIZES[0], BATCH_SIZES[-1]
    lines = [
        table,
        "",
        f"Batches of {largest} give {best[largest] / best[smallest]:.2f} times the images/s of "
        f"batches of {smallest} (wanted: 4).",
    ]
    if on_cuda:
        hidden = overlap(model, ready)
        lines[-1] += f" Of the time of copies to the device, kernels ran during {hidden:.0%}."
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, rounds=3).parse_args()
    print(TITLE)
    if not (options.dry_run or torch.cuda.is_available()):
        print("Not measured here: torch sees no CUDA device. Run it where there is one.\n")
        print(markdown_table(["", "images/s"], [("batches of 1, 8 and 32", "not measured")]))
        return
    tiny = options.quick or options.dry_run
    shape, layers, rounds = (TINY, 2, 1) if tiny else (LARGE, NUM_LAYERS, options.rounds)
    print(
        f"{DRY_RUN if options.dry_run else 'Measured'} on {device_name()}: {layers} layers of a "
        f"CLIP vision encoder of width {shape['hidden_size']} at {EDGE} pixels and a projector, "
        "random weights, float16. The bare model runs on pixels that are on the device already, "
        "eagerly and replayed as a CUDA graph; the encoder takes requests of one preprocessed "
        "image each from the host's memory, checks their embeddings and gives each its own. "
        f"Median (min..max) of {rounds} round(s).\n"
    )
    print(report(shape, layers, rounds, 32 if options.dry_run else NUM_IMAGES))


if __name__ == "__main__":
    main()
