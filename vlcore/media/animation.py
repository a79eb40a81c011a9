"""Animated GIF and WebP files as videos, decoded by Pillow."""

from __future__ import annotations

from itertools import accumulate

from PIL import Image
from PIL.ImageFile import ImageFile

from vlcore.errors import VideoError, VideoLimitError, VlcoreError
from vlcore.media.conversion import stored_bytes, to_rgb
from vlcore.media.deadline import Deadline, TimedFile
from vlcore.media.policy import DecodedBudget
from vlcore.media.video import VideoLimits, VideoSampling
from vlcore.media.video_timeline import DecodedVideo, Timeline

_DEFAULT_DURATION_MS = 100.0
"""How long a frame is shown whose duration is 0, as in browsers."""
_FORMATS = ("GIF", "WEBP")


def is_animation(data: bytes) -> bool:
    """Return whether a file is a GIF or WebP file, which may have one frame only."""
    return data[:4] == b"GIF8" or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def decode_animation(
    data: bytes,
    name: str,
    sampling: VideoSampling,
    limits: VideoLimits,
    budget: DecodedBudget,
    deadline: Deadline,
) -> DecodedVideo:
    """Decode the sampled frames of an animation; transparency is dropped, as in images.

    Raises:
        VideoError: the file is damaged, or is an image.
        VideoLimitError: the video exceeds a limit.
    """
    try:
        with Image.open(TimedFile(data, deadline), formats=_FORMATS) as opened:
            return _decode(opened, name, sampling, limits, budget, deadline)
    except VlcoreError:
        raise
    except Exception as error:  # decoders raise many types on damaged files
        deadline.check()
        raise VideoError(
            f"{name} is damaged or truncated: {type(error).__name__}: {error}"
        ) from error


def _decode(
    image: ImageFile,
    name: str,
    sampling: VideoSampling,
    limits: VideoLimits,
    budget: DecodedBudget,
    deadline: Deadline,
) -> DecodedVideo:
    size = width, height = image.size
    if width * height > limits.max_pixels:
        raise VideoLimitError(
            f"{name} is {width} x {height} = {width * height} pixels, more than "
            f"max_pixels={limits.max_pixels} of vlcore.VideoLimits"
        )
    num_frames = getattr(image, "n_frames", 1)
    if num_frames == 1:
        raise VideoError(f"{name} is an image of one frame, not a video: pass it as an image")
    if num_frames > limits.max_total_frames:
        raise VideoLimitError(
            f"{name} has more frames than max_total_frames={limits.max_total_frames} of "
            "vlcore.VideoLimits"
        )
    durations = []
    for index in range(num_frames):
        _seek(image, index, size, name, deadline)
        milliseconds = float(image.info.get("duration") or _DEFAULT_DURATION_MS)
        durations.append(milliseconds / 1000)
    *times, duration = accumulate(durations, initial=0.0)
    timeline = Timeline(tuple(times), duration, num_frames / duration)
    indices = timeline.sample(sampling, limits, name)
    stored = stored_bytes("RGB", size)
    budget.take(stored * len(indices), 3 * stored, size, name)
    frames = []
    for index in indices:
        _seek(image, index, size, name, deadline)
        frame = to_rgb(image)
        frames.append(frame.copy() if frame is image else frame)
        frames[-1].info = {}
    return timeline, indices, frames


def _seek(
    image: ImageFile, index: int, size: tuple[int, int], name: str, deadline: Deadline
) -> None:
    """Decode a frame, and the ones before it on which it depends."""
    deadline.check()
    image.seek(index)
    if image.size != size:
        raise VideoError(
            f"{name} is damaged: frame {index + 1} is {image.width} x {image.height}, and frame 1 "
            f"is {size[0]} x {size[1]}"
        )
    image.load()
