"""``Video``: the frames that a vision model receives, how they are sampled, and their limits."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from PIL import Image

from vlcore.errors import OptionError, VideoError
from vlcore.media.kind import VIDEO, MediaKind

FramePosition = Literal["start", "middle", "ends"]

_POSITIONS = ("start", "middle", "ends")


@dataclass(frozen=True, eq=False)
class Video:
    """Sampled frames of a video, decoded and upright.

    Raises:
        VideoError: there is no frame; a frame is not an RGB image of the first frame's size; or the
            times are not one for each frame, in order.
    """

    frames: tuple[Image.Image, ...]
    """The frames as RGB images of one size, in order of time."""
    times: tuple[float, ...]
    """When each frame is shown, in seconds from the first frame of the whole video."""
    duration: float
    """Duration of the whole video, in seconds."""
    fps: float
    """Frames per second of the whole video, on average."""
    total_frames: int
    """Number of frames of the whole video, of which ``frames`` are a sample."""
    source_key: str = field(default="", repr=False)
    """Digest of the file and the sampling, if the frames were decoded from a file."""

    def __post_init__(self) -> None:
        if not self.frames:
            raise VideoError("a video has at least one frame")
        for number, frame in enumerate(self.frames, 1):
            if not isinstance(frame, Image.Image) or frame.mode != "RGB":
                raise VideoError(
                    f"frames are RGB images; frame {number} is "
                    f"{getattr(frame, 'mode', type(frame).__name__)}"
                )
            if frame.size != self.size:
                raise VideoError(
                    "the frames of a video have one size; frame 1 is {} x {}, and frame {} is "
                    "{} x {}".format(*self.size, number, *frame.size)
                )
        _check_times(self.times, len(self.frames))
        for name in ("duration", "fps"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value < math.inf):
                raise VideoError(f"{name} of a video is a number of at least 0; it is {value!r}")
        if self.total_frames < len(self.frames):
            raise VideoError(
                f"total_frames of a video is at least its number of frames, {len(self.frames)}; "
                f"it is {self.total_frames}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of each frame."""
        return self.frames[0].size

    @cached_property
    def key(self) -> str:
        """A digest of the content: of the file and the sampling, or of the frames' pixels."""
        digest = hashlib.sha256(self.source_key.encode())
        if not self.source_key:
            facts = (self.size, self.times, self.duration, self.fps, self.total_frames)
            digest.update(repr(facts).encode())
            for frame in self.frames:
                digest.update(frame.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class VideoSampling:
    """Which frames of a video a vision model receives.

    The number of frames follows from ``num_frames``, or from ``fps`` and the duration, or is that
    of the whole video. It is brought into ``min_frames`` to ``max_frames``, rounded down to a
    multiple of ``multiple_of``, and never exceeds the number of frames of the video: none is
    repeated. The frames are distributed evenly over the frames of the video.

    Raises:
        OptionError: a value is not positive, or both ``num_frames`` and ``fps`` are given.

    Source: ``sample_frames`` of the video processors of transformers 5.23.
    """

    fps: float | None = None
    """Frames per second."""
    num_frames: int | None = None
    """Number of frames."""
    min_frames: int = 1
    """Minimum number of frames."""
    max_frames: int | None = None
    """Maximum number of frames; ``None`` for no maximum."""
    multiple_of: int = 1
    """The number of frames that a vision model merges in time."""
    position: FramePosition = "start"
    """The first (``"start"``) or middle frames (``"middle"``) of equal parts of the video; or its
    first and last frames, and evenly distributed ones between them (``"ends"``)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "position":
                if value not in _POSITIONS:
                    raise OptionError(
                        f"position must be one of {', '.join(_POSITIONS)}; it is {value!r}"
                    )
            elif value is not None or name in ("min_frames", "multiple_of"):
                is_valid = _is_number(value) if name == "fps" else _is_integer(value)
                if not is_valid or not 0 < value < math.inf:
                    raise OptionError(f"{name} must be a positive number; it is {value!r}")
        if self.fps is not None and self.num_frames is not None:
            raise OptionError("frames are sampled by fps or by num_frames, not by both")

    def indices(self, total_frames: int, fps: float) -> tuple[int, ...]:
        """Return the indices of the sampled frames, in increasing order.

        Args:
            total_frames: the number of frames of the video, at least 1.
            fps: frames per second of the video, on average; 0 if unknown.
        """
        count = self._count(total_frames, fps)
        if self.position == "ends":
            positions = np.linspace(0, total_frames - 1, count).round()
            return tuple(int(position) for position in positions)
        shift = 1 if self.position == "middle" else 0
        return tuple((2 * i + shift) * total_frames // (2 * count) for i in range(count))

    def _count(self, total_frames: int, fps: float) -> int:
        count: float = total_frames
        if self.num_frames is not None:
            count = round(self.num_frames / self.multiple_of) * self.multiple_of
        elif self.fps is not None and fps > 0:
            count = total_frames / fps * self.fps
        count = max(count, self.min_frames)
        if self.max_frames is not None:
            count = min(count, self.max_frames)
        whole = int(min(count, total_frames))
        return max(whole // self.multiple_of * self.multiple_of, min(whole, self.multiple_of), 1)


@dataclass(frozen=True)
class VideoLimits:
    """The limits of a video.

    Each is a maximum; a video that exceeds one raises :class:`VideoLimitError`, as far as possible
    before it is downloaded or decoded.

    Raises:
        OptionError: a limit is not positive.
    """

    kind: ClassVar[MediaKind] = VIDEO

    max_bytes: int = 256 * 1024**2
    """Size of the file or download, in bytes."""
    max_duration_s: float = 3600.0
    """Duration of the video, in seconds."""
    max_total_frames: int = 250_000
    """Number of frames of the video."""
    max_frames: int = 768
    """Number of sampled frames."""
    max_pixels: int = 8192 * 4352
    """Width times height of a frame."""
    max_decoded_bytes: int = 4 * 1024**3
    """Memory of the sampled frames as RGB images and of the decoder, in bytes."""
    decode_timeout_s: float = 60.0
    """Elapsed time for decoding, in seconds. It is checked between frames, and a file is read no
    further when it is over."""
    connect_timeout_s: float = 10.0
    """Time to resolve the host of an http(s) URL, to connect, and between two chunks of a response,
    in seconds."""
    timeout_s: float = 120.0
    """Time for a whole download, including redirects, in seconds."""
    max_redirects: int = 5
    """Number of redirects that a download follows; 0 for none."""
    max_videos: int = 16
    """Number of videos in one request."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not _is_number(value) or not value >= 0 or (value == 0 and name != "max_redirects"):
                raise OptionError(f"{name} must be a positive number; it is {value!r}")


def _check_times(times: tuple[float, ...], num_frames: int) -> None:
    if len(times) != num_frames:
        raise VideoError(f"a video has one time for each of {num_frames} frames, not {len(times)}")
    if not all(_is_number(time) and 0 <= time < math.inf for time in times):
        raise VideoError(f"the times of a video are seconds of at least 0; they are {times}")
    if any(after <= before for before, after in pairwise(times)):
        raise VideoError(f"the times of a video increase from frame to frame; they are {times}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
