"""Fuzz the decoding of videos: every input must give RGB frames or an error of vlcore, in time.

The inputs are determined by the seed. An input with another outcome is written to a file, and so is
the input that is being decoded, so that one that ends the process can be found.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
from fuzz_images import mutated
from PIL import Image

from vlcore.errors import VlcoreError
from vlcore.media.video import VideoLimits, VideoSampling
from vlcore.media.video_loader import load_video

LIMITS = VideoLimits(
    max_pixels=1_000_000,
    max_bytes=1_000_000,
    max_decoded_bytes=256 * 1024**2,
    max_duration_s=600.0,
    max_total_frames=5000,
    max_frames=64,
    decode_timeout_s=5.0,
)
MAX_SECONDS = 6.0
"""The time limit, and one step of a decoder."""
KINDS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("libx264", "mp4", "yuv420p", {}),
    ("libx264", "mp4", "yuv420p", {"movflags": "faststart"}),
    ("libx264", "mp4", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    ("libx264", "matroska", "yuv420p", {}),
    ("libx264", "mpegts", "yuv420p", {}),
    ("libx264", "flv", "yuv420p", {}),
    ("libx264", "avi", "yuv420p", {}),
    ("libx265", "mp4", "yuv420p", {}),
    ("libvpx", "webm", "yuv420p", {}),
    ("libvpx-vp9", "webm", "yuv420p", {}),
    ("libsvtav1", "mp4", "yuv420p", {}),
    ("mpeg4", "avi", "yuv420p", {}),
    ("mpeg2video", "mpeg", "yuv420p", {}),
    ("mpeg1video", "mpegts", "yuv420p", {}),
    ("mjpeg", "mov", "yuvj420p", {}),
    ("prores_ks", "mov", "yuv422p10le", {}),
)


def valid_files() -> list[bytes]:
    """Write a small video of every kind, and animations."""
    files = [_video(*kind) for kind in KINDS]
    gradient = Image.radial_gradient("L").resize((32, 16)).convert("RGB")
    for container in ("GIF", "WEBP"):
        buffer = io.BytesIO()
        turned = [gradient.rotate(30 * i) for i in range(1, 6)]
        gradient.save(buffer, container, save_all=True, append_images=turned, duration=40)
        files.append(buffer.getvalue())
    return files


def _video(codec: str, container: str, pixels: str, options: dict[str, str]) -> bytes:
    quiet = {"x265-params": "log-level=none:pools=1"} if codec == "libx265" else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video")
        with av.open(str(path), "w", format=container, options=options) as output:
            stream: Any = output.add_stream(codec, rate=25, options=quiet)
            stream.width, stream.height, stream.pix_fmt = 64, 32, pixels
            stream.codec_context.gop_size = 5
            stream.codec_context.thread_count = 1
            for number in range(16):
                levels = np.arange(32 * 64 * 3, dtype=np.uint32).reshape(32, 64, 3)
                image = (levels * (number + 1) // 7 % 256).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                output.mux(stream.encode(frame.reformat(format=pixels)))
            output.mux(stream.encode(None))
        return path.read_bytes()


def next_input(files: list[bytes], chance: random.Random) -> tuple[bytes, VideoSampling]:
    """Return a damaged file, and which of its frames to decode."""
    data = mutated(chance.choice(files), files, chance)
    sampling = chance.choice(
        (
            VideoSampling(num_frames=4),
            VideoSampling(fps=10, max_frames=16),
            VideoSampling(num_frames=3, position="ends"),
            VideoSampling(),
        )
    )
    return data, sampling


def outcome(data: bytes, sampling: VideoSampling) -> str:
    """Return the outcome of an input; anything but frames or an error of vlcore is raised."""
    started = time.monotonic()
    try:
        video = load_video(data, sampling, LIMITS, num_threads=1)
    except VlcoreError as error:
        ended = type(error).__name__
    else:
        if any(frame.mode != "RGB" for frame in video.frames):
            raise AssertionError("a frame is not RGB")
        if video.size[0] * video.size[1] > LIMITS.max_pixels:
            raise AssertionError(f"the frames are {video.size}")
        ended = "video"
    if (took := time.monotonic() - started) > MAX_SECONDS:
        raise AssertionError(f"took {took:.1f} s")
    return ended


def fuzz(num_inputs: int, seed: int, failures: Path) -> Counter[str]:
    """Try inputs and count their outcomes."""
    files, counts = valid_files(), Counter[str]()
    slowest = 0.0
    failures.mkdir(parents=True, exist_ok=True)
    current = failures / "current"
    for number in range(num_inputs):
        data, sampling = next_input(files, random.Random(f"{seed}/{number}"))
        current.write_bytes(data)
        started = time.monotonic()
        try:
            counts[outcome(data, sampling)] += 1
        except Exception as error:
            counts[f"FAILED {type(error).__name__}"] += 1
            (failures / f"{seed}-{number}").write_bytes(data)
            print(f"input {number} of seed {seed}, {sampling}: {type(error).__name__}: {error}")
        slowest = max(slowest, time.monotonic() - started)
    current.unlink(missing_ok=True)
    print(f"the slowest input took {slowest:.2f} s of {LIMITS.decode_timeout_s:g} s")
    return counts


def main() -> int:
    """Fuzz with the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failures", type=Path, default=Path("build/fuzz-videos"))
    options = parser.parse_args()
    started = time.monotonic()
    counts = fuzz(options.inputs, options.seed, options.failures)
    for ended, count in counts.most_common():
        print(f"{count:8d} {ended}")
    print(f"{sum(counts.values())} inputs in {time.monotonic() - started:.0f} s")
    return int(any(ended.startswith("FAILED") for ended in counts))


if __name__ == "__main__":
    sys.exit(main())
