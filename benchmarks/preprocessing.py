"""Preprocessing for a CLIP vision encoder next to transformers' own, from pixels and from files."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256

import torch
from _clip import EDGE, TINY, as_jpeg, random_image, random_model
from measure import interleave, markdown_table, ratios, spread
from PIL import Image
from transformers import CLIPImageProcessorPil

from vlcore.media.image import decode_image

FULL_HD, TWELVE_MEGAPIXELS = (1920, 1080), (4000, 3000)
NUM_IMAGES = 8

MODEL = random_model(TINY, num_layers=1)  # only preprocesses
THEIRS = CLIPImageProcessorPil(
    size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE}
)


def ours(image: Image.Image) -> torch.Tensor:
    """Preprocess an image with vlcore."""
    return MODEL.preprocess(image).pixels[0]


def theirs(image: Image.Image) -> torch.Tensor:
    """Preprocess an image with transformers."""
    pixels: torch.Tensor = THEIRS(image, return_tensors="pt")["pixel_values"][0]
    return pixels


def ours_from(data: bytes) -> torch.Tensor:
    """Decode and preprocess a file with vlcore."""
    return ours(decode_image(data, "a JPEG"))


def ours_shrunk_from(data: bytes) -> torch.Tensor:
    """Decode a file at a reduced size, and preprocess it with vlcore."""
    return ours(decode_image(data, "a JPEG", needed_size=MODEL.needed_size))


def theirs_from(data: bytes) -> torch.Tensor:
    """Decode a file with Pillow and preprocess it with transformers."""
    with Image.open(io.BytesIO(data)) as image:
        return theirs(image.convert("RGB"))


def milliseconds(work: Callable[[], object]) -> float:
    """Time one call, in milliseconds."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def name(size: tuple[int, int]) -> str:
    """Write a size."""
    return f"{size[0]} x {size[1]}"


def pixels_report(sizes: Sequence[tuple[int, int]], rounds: int) -> str:
    """Measure from decoded images."""
    rows = []
    for size in sizes:
        image = random_image(size)
        contenders = {"ours": partial(ours, image), "theirs": partial(theirs, image)}
        measured = interleave(
            rounds, {which: partial(milliseconds, work) for which, work in contenders.items()}
        )
        rows.append(
            (
                name(size),
                spread(measured["ours"], 1),
                spread(measured["theirs"], 1),
                spread(ratios(measured["theirs"], measured["ours"])),
                f"{(ours(image) - theirs(image)).abs().max().item():g}",
            )
        )
    headers = ["", "ms", "transformers, ms", "times faster (wanted >= 2)", "largest difference"]
    return markdown_table(headers, rows)


def files_report(sizes: Sequence[tuple[int, int]], rounds: int) -> str:
    """Measure from the bytes of files."""
    rows = []
    for size in sizes:
        data = as_jpeg(random_image(size))
        expected = theirs_from(data)
        contenders = {"whole": ours_from, "shrunk on load": ours_shrunk_from, "theirs": theirs_from}
        measured = interleave(
            rounds,
            {which: partial(milliseconds, partial(of, data)) for which, of in contenders.items()},
        )
        for which in ("whole", "shrunk on load"):
            difference = (contenders[which](data) - expected).abs()
            rows.append(
                (
                    f"{name(size)} of {len(data) // 1024} KiB, {which}",
                    spread(measured[which], 1),
                    spread(measured["theirs"], 1),
                    spread(ratios(measured["theirs"], measured[which])),
                    f"{difference.mean().item():.2g} ({difference.max().item():.2g})",
                )
            )
    headers = ["", "ms", "transformers, ms", "times faster", "mean (largest) difference"]
    return markdown_table(headers, rows)


def threads_report(sizes: Sequence[tuple[int, int]], rounds: int) -> str:
    """Measure with one thread and with two."""
    tasks: dict[str, list[Callable[[], object]]] = {
        f"{name(size)}, from a JPEG": [
            partial(ours_from, as_jpeg(random_image(size, seed))) for seed in range(NUM_IMAGES)
        ]
        for size in sizes
    }
    tasks["SHA-256 of 32 MiB"] = [partial(sha256, bytes(2**25))] * NUM_IMAGES
    rows = []
    for what, works in tasks.items():
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:
            measured = interleave(
                rounds,
                {
                    number: partial(milliseconds, partial(do_all, pool, works))
                    for number, pool in enumerate((one, two), 1)
                },
            )
        per_second = {
            number: [NUM_IMAGES * 1000 / taken for taken in times]
            for number, times in measured.items()
        }
        rows.append(
            (
                what,
                spread(per_second[1], 1),
                spread(per_second[2], 1),
                spread(ratios(per_second[2], per_second[1])),
            )
        )
    headers = ["", "one thread, per second", "two threads, per second", "times as many"]
    return markdown_table(headers, rows)


def do_all(pool: ThreadPoolExecutor, works: Sequence[Callable[[], object]]) -> None:
    """Run all tasks in a thread pool, as the encoder does."""
    for done in [pool.submit(work) for work in works]:
        done.result()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="the smaller size, one round")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    sizes = [FULL_HD] if options.quick else [FULL_HD, TWELVE_MEGAPIXELS]
    print("## Preprocessing\n")
    print(
        f"Images for a CLIP vision encoder at {EDGE} pixels, resized, cropped and normalised in "
        "one thread, from decoded images, next to transformers' own CLIPImageProcessorPil with the "
        "same settings.\n"
    )
    print(pixels_report(sizes, rounds))
    print(
        "\nFrom the bytes of a JPEG to pixels, without and with shrink_on_load, next to "
        "Pillow's decoder and transformers. Differences are of normalised pixels, of which one "
        "level of 8 bits is some 0.015.\n"
    )
    print(files_report(sizes, rounds))
    print(
        "\nThe same (without shrink_on_load) for several files, in a pool of one thread and of "
        "two; "
        "a digest shows how much the second core then gains for work that shares nothing.\n"
    )
    print(threads_report(sizes, max(1, rounds // 4)))


if __name__ == "__main__":
    main()
