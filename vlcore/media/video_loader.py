"""Loading of videos from any source, and of lists of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlcore.errors import ImageError, ImageLimitError, OptionError, VideoError, VideoLimitError
from vlcore.media.image import load_image
from vlcore.media.kind import VIDEO
from vlcore.media.policy import DEFAULT_LIMITS, TRUSTING, DecodedBudget, ImageAccess, ImageLimits
from vlcore.media.source import ImageSource, describe, read_file
from vlcore.media.video import Video, VideoLimits, VideoSampling
from vlcore.media.video_decoder import decode_video

VideoSource = str | Path | bytes | Video | Sequence[ImageSource]
"""A path, an http(s), ``file:`` or ``data:`` URL, the bytes of a file, a video, or its frames."""

DEFAULT_VIDEO_LIMITS = VideoLimits()
DEFAULT_FRAME_RATE = 2.0
"""Frames per second of a list of frames, at which most families of models sample."""


def load_video(
    source: VideoSource,
    sampling: VideoSampling | None = None,
    limits: VideoLimits = DEFAULT_VIDEO_LIMITS,
    access: ImageAccess = TRUSTING,
    budget: DecodedBudget | None = None,
    *,
    fps: float = DEFAULT_FRAME_RATE,
    image_limits: ImageLimits = DEFAULT_LIMITS,
    num_threads: int | None = None,
) -> Video:
    """Load the sampled frames of a video.

    Args:
        source: a path, an http(s), ``file:`` or ``data:`` URL, the bytes of a file, a list of
            frames, each of which is an image or a source of one, or a video, which is returned.
        sampling: which frames of a file are decoded; by default, all of them. The frames of a list
            have been sampled already.
        limits: the limits of a video.
        access: the allowed sources; by default, all of them.
        budget: the memory that the videos and images of its request may still take; by default,
            that of a request with this video alone.
        fps: frames per second of a list of frames.
        image_limits: the limits of each frame of a list.
        num_threads: the number of threads of the decoder; ``None`` for the number of CPUs.

    Returns:
        The video, decoded and upright.

    Raises:
        VideoError: the video is missing, not allowed, cannot be fetched or cannot be decoded; or
            PyAV is not installed.
        VideoLimitError: the video exceeds a limit.
        OptionError: ``fps`` is not positive.
    """
    if isinstance(source, Video):
        return source
    budget = DecodedBudget(limits) if budget is None else budget
    if isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray):
        return video_from_frames(source, limits, access, budget, fps, image_limits)
    data = read_file(source, limits, access)
    name = describe(source, VIDEO)
    sampling = VideoSampling() if sampling is None else sampling
    return decode_video(data, name, sampling, limits, budget, num_threads=num_threads)


def video_from_frames(
    frames: Sequence[ImageSource],
    limits: VideoLimits,
    access: ImageAccess,
    budget: DecodedBudget,
    fps: float,
    image_limits: ImageLimits,
) -> Video:
    """Load the frames of a video from their own sources; see :func:`load_video`."""
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise OptionError(f"fps of a list of frames must be a positive number; it is {fps!r}")
    if len(frames) > limits.max_frames:
        raise VideoLimitError(
            f"a list of frames has {len(frames)} frames, more than "
            f"max_frames={limits.max_frames} of vlcore.VideoLimits"
        )
    image_limits = replace(image_limits, max_pixels=min(image_limits.max_pixels, limits.max_pixels))
    images = []
    for number, frame in enumerate(frames, 1):
        try:
            images.append(load_image(frame, image_limits, access, budget))
        except ImageLimitError as error:
            raise VideoLimitError(f"frame {number} of {len(frames)}: {error}") from error
        except ImageError as error:
            raise VideoError(f"frame {number} of {len(frames)}: {error}") from error
    count = len(images)
    return Video(tuple(images), tuple(i / fps for i in range(count)), count / fps, fps, count)
