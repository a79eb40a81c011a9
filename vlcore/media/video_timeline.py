"""``Timeline``: when each frame of a video is shown, and which frames decoding can start from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from PIL import Image

from vlcore.errors import VideoError, VideoLimitError
from vlcore.media.video import VideoLimits, VideoSampling
from vlcore.media.video_file import VideoFile

_RATE_TOLERANCE = 0.01
"""The rate that the header states is exact, such as 30000 / 1001; it is used if it differs by less
than this from the measured one, which suffers from times in milliseconds."""
_MAX_STEPS_BACK = 16
"""How many keyframes before a frame are considered to start from; one or two in real files."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown."""

    times: tuple[float, ...]
    """Seconds from the first frame, in order."""
    duration: float
    """Seconds, including the time for which the last frame is shown."""
    fps: float
    """Frames per second, on average; 0 if a video of one frame does not state it."""

    def sample(self, sampling: VideoSampling, limits: VideoLimits, name: str) -> tuple[int, ...]:
        """Return the indices of the sampled frames, in increasing order.

        Args:
            sampling: how frames are sampled.
            limits: the limits of the video.
            name: the name of the video in messages.

        Raises:
            VideoLimitError: the video is too long, has too many frames, or too many are sampled.
        """
        if self.duration > limits.max_duration_s:
            raise VideoLimitError(
                f"{name} takes {self.duration:.6g} s, more than "
                f"max_duration_s={limits.max_duration_s:g} of vlcore.VideoLimits"
            )
        indices = sampling.indices(len(self.times), self.fps)
        if len(indices) > limits.max_frames:
            raise VideoLimitError(
                f"{name} has {len(indices)} sampled frames, more than "
                f"max_frames={limits.max_frames} of vlcore.VideoLimits: sample fewer, for example "
                "with max_frames of vlcore.VideoSampling"
            )
        return indices


DecodedVideo = tuple[Timeline, tuple[int, ...], list[Image.Image]]
"""The timeline of a video, the indices of its sampled frames, and these frames."""


@dataclass(frozen=True)
class Plan:
    """The order in which the packets of a file are shown."""

    timeline: Timeline
    order: tuple[int, ...]
    """For each frame in order of time, the index of its packet in order of decoding."""

    def runs(self, file: VideoFile, needed: Sequence[int]) -> Iterator[range]:
        """Yield the packets to decode for some frames, as ranges that begin with keyframes.

        Args:
            file: the file.
            needed: the indices of packets of the frames, in any order.
        """
        first = last = -1
        keyframes = [index for index, packet in enumerate(file.packets) if packet.is_keyframe]
        for index in sorted(needed):
            start = self._start(file, keyframes, index)
            if first < 0:
                first = start
            elif start > last + 1:
                yield range(first, last + 1)
                first = start
            last = index
        yield range(first, last + 1)

    def _start(self, file: VideoFile, keyframes: Sequence[int], index: int) -> int:
        """Return the last keyframe that is neither decoded nor shown after a frame."""
        stamp = file.packets[index].pts or 0
        end = bisect_right(keyframes, index)
        for keyframe in reversed(keyframes[max(end - _MAX_STEPS_BACK, 0) : end]):
            if (file.packets[keyframe].pts or 0) <= stamp:
                return keyframe
        return 0


def plan(file: VideoFile) -> Plan | None:
    """Return when frames are shown, if the packets state it exactly; otherwise ``None``.

    They do not if times are absent or not distinct, or if the first keyframe is followed by frames
    that are shown before it: whether these can be decoded is known only afterwards.
    """
    shown = [index for index, is_shown in enumerate(file.shown) if is_shown]
    if not shown or any(packet.pts is None for packet in file.packets):
        return None
    stamps = {index: int(file.packets[index].pts or 0) for index in shown}
    order = sorted(shown, key=stamps.__getitem__)
    ordered = [stamps[index] for index in order]
    is_distinct = all(before < after for before, after in pairwise(ordered))
    if not is_distinct or int(file.packets[0].pts or 0) > ordered[0]:
        return None
    last = file.packets[order[-1]].duration or 0
    return Plan(timeline_from_stamps(ordered, last, file), tuple(order))


def timeline_from_stamps(
    stamps: Sequence[int | None], last_duration: int, file: VideoFile
) -> Timeline:
    """Compute a timeline from the times of decoded frames, or from the frame rate of the header.

    Args:
        stamps: the time of each frame in units of the file, as far as they are known.
        last_duration: the duration of the last frame in these units; 0 if unknown.
        file: the file.

    Raises:
        VideoError: neither times nor a frame rate are known.
    """
    known = [stamp for stamp in stamps if stamp is not None]
    count = len(stamps)
    if len(known) < count or any(before >= after for before, after in pairwise(known)):
        if not file.rate:
            raise VideoError(f"{file.name} states neither times of its frames nor a frame rate")
        rate = file.rate
        return Timeline(
            tuple(float(i / rate) for i in range(count)), float(count / rate), float(rate)
        )
    times = tuple(float((stamp - known[0]) * file.time_base) for stamp in known)
    span = (known[-1] - known[0]) * file.time_base
    duration = float(span + _last_duration(span, count, last_duration, file))
    measured = count / duration if duration > 0 else 0.0
    stated = float(file.rate or 0)
    is_exact = abs(stated - measured) <= _RATE_TOLERANCE * measured
    return Timeline(times, duration, stated if is_exact or not measured else measured)


def _last_duration(span: Fraction, count: int, last_duration: int, file: VideoFile) -> Fraction:
    """Return for how long the last frame is shown, in seconds."""
    mean = span / (count - 1) if count > 1 else 1 / file.rate if file.rate else Fraction(0)
    stated = last_duration * file.time_base
    # A header that states an absurd duration is not believed.
    return stated if 0 < stated <= 10 * mean or not mean else mean
