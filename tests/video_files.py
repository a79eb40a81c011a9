"""Small video files, written by PyAV. Each frame shows its number."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from av import VideoFrame

SIZE = (32, 16)
_LEVELS = 12
_STEP = 20


def frame_image(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A frame with bars whose grey levels are the two digits of its number, to the base of 12.

    The first digit is on the left, the second on the right; the upper half is brighter.
    """
    width, height = size
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2] = number // _LEVELS * _STEP
    pixels[:, width // 2 :] = number % _LEVELS * _STEP
    pixels[: height // 2] += 30
    return Image.fromarray(pixels)


def number_of(image: Image.Image) -> int:
    """Read the number of a decoded frame from the lower corners."""
    pixels = np.asarray(image).astype(float).mean(axis=2)
    high, low = (round(pixels[-1, x] / _STEP) for x in (0, -1))
    return int(high * _LEVELS + low)


def video_file(
    num_frames: int = 12,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    size: tuple[int, int] = SIZE,
    fps: int = 4,
    gop: int = 4,
    times_ms: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    pixels: str = "yuv420p",
    max_b_frames: int = 2,
    with_sound: bool = False,
) -> bytes:
    """Write a video of numbered frames; the same arguments give the same file."""
    return _video_file(
        num_frames,
        codec,
        container,
        size,
        fps,
        gop,
        None if times_ms is None else tuple(times_ms),
        tuple((options or {}).items()),
        tuple((container_options or {}).items()),
        pixels,
        max_b_frames,
        with_sound,
    )


@cache
def _video_file(
    num_frames: int,
    codec: str,
    container: str,
    size: tuple[int, int],
    fps: int,
    gop: int,
    times_ms: tuple[int, ...] | None,
    options: tuple[tuple[str, str], ...],
    container_options: tuple[tuple[str, str], ...],
    pixels: str,
    max_b_frames: int,
    with_sound: bool,
) -> bytes:
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video")
        with av.open(str(path), "w", format=container, options=dict(container_options)) as output:
            stream: Any = output.add_stream(
                codec, rate=fps, options={"threads": "1", **dict(options)}
            )
            stream.width, stream.height = size
            stream.pix_fmt = pixels
            stream.codec_context.gop_size = gop
            stream.codec_context.thread_count = 1
            if codec not in ("libvpx", "libvpx-vp9", "mjpeg"):
                stream.codec_context.max_b_frames = max_b_frames
            if times_ms is not None:
                stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
            sound: Any = output.add_stream("aac", rate=8000, layout="mono") if with_sound else None
            for number in range(num_frames):
                frame = _av_frame(number, size, pixels)
                if times_ms is not None:
                    frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
            if sound is not None:
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 2048), np.float32), format="fltp", layout="mono"
                )
                silence.sample_rate = 8000
                output.mux(sound.encode(silence))
                output.mux(sound.encode(None))
        return path.read_bytes()


def _av_frame(number: int, size: tuple[int, int], pixels: str) -> VideoFrame:
    import av

    rgb = np.asarray(frame_image(number, size))
    return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixels)


def video_of_two_sizes(*sizes: tuple[int, int]) -> bytes:
    """Write a video of four frames of each size, numbered from 0 for each."""
    import av

    output = io.BytesIO()
    with av.open(output, "w", format="mpegts") as container:
        stream: Any = container.add_stream("libx264", rate=4)
        stream.width, stream.height = sizes[0]
        stream.pix_fmt = "yuv420p"
        for part, size in enumerate(sizes):
            encoder: Any = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height = size
            encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 4)
            encoder.framerate, encoder.thread_count = Fraction(4), 1
            packets = []
            for number in range(4):
                frame = _av_frame(number, size, "yuv420p")
                frame.pts, frame.time_base = part * 4 + number, Fraction(1, 4)
                packets += encoder.encode(frame)
            for packet in packets + encoder.encode(None):
                packet.stream = stream
                container.mux(packet)
    return output.getvalue()


def sound_file() -> bytes:
    """Write an MP4 file with sound, and no video."""
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound")
        with av.open(str(path), "w", format="mp4") as output:
            stream: Any = output.add_stream("aac", rate=8000, layout="mono")
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 2048), np.float32), format="fltp", layout="mono"
            )
            silence.sample_rate = 8000
            output.mux(stream.encode(silence))
            output.mux(stream.encode(None))
        return path.read_bytes()
