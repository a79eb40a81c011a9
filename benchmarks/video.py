"""Videos, decoded and preprocessed, next to PyAV's own decoding and the frames as images."""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from _clip import EDGE, TINY, random_image, random_model
from measure import interleave, markdown_table, ratios, spread
from PIL import Image

from vlcore.media.video import VideoLimits, VideoSampling
from vlcore.media.video_decoder import decode_video

FULL_HD = (1920, 1080)
NUM_FRAMES = 32
FRAMES_PER_SECOND = 30
SAMPLING = VideoSampling(num_frames=NUM_FRAMES)
LIMITS = VideoLimits()
MODEL = random_model(TINY, num_layers=1)  # only preprocesses


def video_file(size: tuple[int, int], num_frames: int) -> bytes:
    """Encode a pan over an image with moving bars by x264, with a keyframe every two seconds."""
    width, height = size
    scene = np.asarray(random_image((width + 512, height + 512)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        with av.open(str(path), "w") as output:
            stream: Any = output.add_stream(
                "libx264", rate=FRAMES_PER_SECOND, options={"preset": "veryfast", "crf": "26"}
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.gop_size = 2 * FRAMES_PER_SECOND
            stream.codec_context.max_b_frames = 3
            for number in range(num_frames):
                x, y = (int(256 + 250 * wave(number / 60)) for wave in (np.sin, np.cos))
                image = scene[y : y + height, x : x + width].copy()
                bar = number * 8 % (width - 64)
                image[height // 4 : height // 2, bar : bar + 64] = 255
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            output.mux(stream.encode(None))
        return path.read_bytes()


def ours(data: bytes) -> list[torch.Tensor]:
    """Decode and preprocess the sampled frames with vlcore."""
    video = decode_video(data, "the video", SAMPLING, LIMITS)
    return [MODEL.preprocess(frame).pixels for frame in video.frames]


def theirs(data: bytes, threads: str) -> list[torch.Tensor]:
    """Decode with PyAV up to the last sampled frame, then preprocess the sampled ones as images."""
    images = []
    container: Any
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_type = threads
        indices = set(SAMPLING.indices(stream.frames, float(stream.average_rate or 0)))
        for index, frame in enumerate(container.decode(stream)):
            if index in indices:
                images.append(Image.fromarray(frame.to_ndarray(format="rgb24")))
            if index == max(indices):
                break
    return [MODEL.preprocess(image).pixels for image in images]


CONTENDERS: dict[str, Callable[[bytes], list[torch.Tensor]]] = {
    "ours": ours,
    "slices": partial(theirs, threads="SLICE"),  # PyAV's default
    "frames": partial(theirs, threads="AUTO"),
}


def seconds(work: Callable[[], object]) -> float:
    """Time one call, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(size: tuple[int, int], lengths: tuple[int, ...], rounds: int) -> str:
    """Measure videos of some numbers of frames."""
    rows = []
    for length in lengths:
        data = video_file(size, length)
        pixels = {name: torch.cat(work(data)) for name, work in CONTENDERS.items()}
        difference = max((pixels["ours"] - other).abs().max().item() for other in pixels.values())
        measured = interleave(
            rounds,
            {name: partial(seconds, partial(work, data)) for name, work in CONTENDERS.items()},
        )
        rows.append(
            (
                f"{NUM_FRAMES} of {length} frames",
                *(spread(measured[name]) for name in CONTENDERS),
                spread(ratios(measured["ours"], measured["slices"])),
                spread(ratios(measured["ours"], measured["frames"])),
                f"{difference:g}",
            )
        )
    headers = ["", "vlcore, s", "PyAV, s", "PyAV with threads for frames, s"]
    headers += ["vlcore by PyAV (wanted <= 1.2)", "vlcore by PyAV with threads for frames"]
    headers += ["largest difference"]
    return markdown_table(headers, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="small frames, one round")
    options = parser.parse_args()
    size = (320, 180) if options.quick else FULL_HD
    lengths = (32, 64) if options.quick else (32, 300)
    print("## Videos\n")
    print(
        f"{NUM_FRAMES} frames of {size[0]} x {size[1]}, sampled evenly from an H.264 file in "
        f"memory, decoded and preprocessed for a CLIP vision encoder at {EDGE} pixels; next to "
        "PyAV's decoding of the file up to the last of these frames, at its defaults and with "
        "threads for frames, followed by the same preprocessing of these frames as images. vlcore "
        "also finds out the exact number of frames and their times, and checks its limits.\n"
    )
    print(report(size, lengths, 1 if options.quick else options.rounds))


if __name__ == "__main__":
    main()
