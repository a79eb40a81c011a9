"""Fuzz the loading of images: every input must give an RGB image or an error of vlcore.

The inputs are determined by the seed. An input with another outcome is written to a file.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from PIL import Image

from vlcore.errors import VlcoreError
from vlcore.media.image import load_image
from vlcore.media.policy import FORMATS, ImageAccess, ImageLimits

LIMITS = ImageLimits(max_pixels=1_000_000, max_bytes=1_000_000)
ACCESS = ImageAccess(urls=False)
MAX_SECONDS = 5.0
WORDS = (
    "data:",
    "image/png",
    ";base64,",
    "file://",
    "http://",
    "//",
    "..",
    "%00",
    "\0",
    "[::1",
    "@",
)


def valid_files() -> list[bytes]:
    """Write small images in every format and a few modes, animations among them."""
    files = []
    for kind in FORMATS:
        for mode in ("RGB", "L", "P", "RGBA", "1", "I;16"):
            gradient = Image.radial_gradient("L").resize((13, 9)).convert(mode)
            for options in ({}, {"save_all": True, "append_images": [gradient.rotate(90)]}):
                buffer = io.BytesIO()
                try:
                    gradient.save(buffer, kind, **options)
                except (OSError, ValueError, KeyError):
                    continue  # the format does not support the mode
                files.append(buffer.getvalue())
    return files


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Damage a file in one to four ways."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(found) + 1)
        way = chance.randrange(7)
        if way == 0:
            del found[at:]
        elif way == 1:
            for _ in range(chance.randint(1, 8)):
                if found:
                    found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
        elif way == 2 and found:
            found[chance.randrange(min(64, len(found)))] = chance.choice((0, 1, 127, 128, 255))
        elif way == 3:
            other = chance.choice(others)
            found[at:] = other[chance.randrange(len(other)) :]
        elif way == 4:
            found[at : at + 4] = chance.choice(
                (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0")
            )
        elif way == 5:
            size = chance.randint(1, 40)
            found[at:at] = found[at : at + size] * chance.randint(1, 20)
        else:
            del found[at : at + chance.randint(1, 40)]
    return bytes(found)


def next_input(files: list[bytes], chance: random.Random) -> bytes | str:
    """Return the next input: mostly a damaged file, sometimes a data URL or another text."""
    kind = chance.randrange(20)
    if kind == 0:
        return "".join(chance.choice(WORDS) for _ in range(chance.randint(1, 6)))
    data = mutated(chance.choice(files), files, chance)
    if kind == 1:
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        return url[: chance.randint(0, len(url))] if chance.random() < 0.5 else url
    return data


def outcome(source: bytes | str) -> str:
    """Return the outcome of an input; anything but an image or an error of vlcore is raised."""
    started = time.monotonic()
    try:
        image = load_image(source, LIMITS, ACCESS)
    except VlcoreError as error:
        ended = type(error).__name__
    else:
        if image.mode != "RGB" or image.width * image.height > LIMITS.max_pixels:
            raise AssertionError(f"the image is {image.mode}, {image.size}")
        ended = "image"
    if (took := time.monotonic() - started) > MAX_SECONDS:
        raise AssertionError(f"took {took:.1f} s")
    return ended


def fuzz(num_inputs: int, seed: int, failures: Path) -> Counter[str]:
    """Try inputs and count their outcomes."""
    files, counts = valid_files(), Counter[str]()
    for number in range(num_inputs):
        source = next_input(files, random.Random(f"{seed}/{number}"))
        try:
            counts[outcome(source)] += 1
        except Exception as error:
            counts[f"FAILED {type(error).__name__}"] += 1
            failures.mkdir(parents=True, exist_ok=True)
            data = source if isinstance(source, bytes) else source.encode()
            (failures / f"{seed}-{number}").write_bytes(data)
            print(f"input {number} of seed {seed}: {type(error).__name__}: {error}")
    return counts


def main() -> int:
    """Fuzz with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.monotonic()
    counts = fuzz(options.inputs, options.seed, options.failures)
    for ended, count in counts.most_common():
        print(f"{count:8d} {ended}")
    print(f"{sum(counts.values())} inputs in {time.monotonic() - started:.0f} s")
    return int(any(ended.startswith("FAILED") for ended in counts))


if __name__ == "__main__":
    sys.exit(main())
