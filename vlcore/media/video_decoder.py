"""Decoding of the sampled frames of a video, as upright RGB images within limits.

The following holds for every plugin:

- the sampled frames are exactly those that :class:`vlcore.VideoSampling` names. Frames are counted
  in the file, not taken from its header; groups of frames without a sampled one are not decoded;
- the rotation in the metadata is applied;
- frames of another size than the first one are scaled to it;
- a damaged or truncated file is an error, as far as its sampled frames depend on it;
- memory and time are bounded: sizes are checked before, and the time between frames.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlcore._utils.resources import num_cpus
from vlcore.errors import VideoError, VideoLimitError
from vlcore.media.animation import decode_animation, is_animation
from vlcore.media.conversion import stored_bytes
from vlcore.media.deadline import Deadline
from vlcore.media.orientation import transpose_method
from vlcore.media.policy import DecodedBudget
from vlcore.media.video import Video, VideoLimits, VideoSampling
from vlcore.media.video_file import CONTAINERS, VideoFile, open_video
from vlcore.media.video_timeline import DecodedVideo, Plan, Timeline, plan, timeline_from_stamps

if TYPE_CHECKING:
    from av import VideoFrame

_MAX_THREADS = 16
_MAX_REFERENCES = 17
"""The number of frames that a decoder keeps, in addition to one for each thread."""
_USUAL_BITS = 12
"""Bits of a pixel whose format is not known yet: 8 for brightness, and 4 for colour."""
_SKIPPABLE = ("h264", "mpeg1video", "mpeg2video", "mpeg4")
"""Codecs that state reliably which frames no other frame refers to."""
_ORIENTATIONS = {
    # Signs of the matrix (a, b, c, d), where a pixel (x, y) is shown at (ax + cy, bx + dy).
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
"""The orientation in the numbering of EXIF."""


def decode_video(
    data: bytes,
    name: str,
    sampling: VideoSampling,
    limits: VideoLimits,
    budget: DecodedBudget | None = None,
    *,
    num_threads: int | None = None,
) -> Video:
    """Decode the sampled frames of a video file.

    Args:
        data: the content of the file.
        name: the name of the video in messages.
        sampling: which frames are decoded.
        limits: the limits of the video.
        budget: the memory that the videos and images of its request may still take.
        num_threads: the number of threads of the decoder; ``None`` for the number of CPUs.

    Raises:
        VideoError: the video cannot be decoded, or PyAV is not installed.
        VideoLimitError: the video exceeds a limit.
    """
    if not data:
        raise VideoError(f"{name} is empty: a video in one of {', '.join(CONTAINERS)} is expected")
    deadline = Deadline(name, limits.decode_timeout_s)
    budget = DecodedBudget(limits) if budget is None else budget
    if is_animation(data):
        decoded = decode_animation(data, name, sampling, limits, budget, deadline)
    else:
        num_threads = min(num_threads or num_cpus(), _MAX_THREADS)
        with open_video(data, name, limits, deadline) as file:
            decoded = _Decoder(file, sampling, limits, budget, deadline, num_threads).decode()
    timeline, indices, frames = decoded
    return Video(
        frames=tuple(frames),
        times=tuple(timeline.times[index] for index in indices),
        duration=timeline.duration,
        fps=timeline.fps,
        total_frames=len(timeline.times),
        source_key=video_file_key(data, sampling),
    )


def video_file_key(data: bytes, sampling: VideoSampling) -> str:
    """Return a digest of everything that the frames of a video file depend on."""
    digest = hashlib.sha256(f"{sampling!r}\0".encode())
    digest.update(data)
    return digest.hexdigest()


class _Decoder:
    """Decodes one video within its limits."""

    def __init__(
        self,
        file: VideoFile,
        sampling: VideoSampling,
        limits: VideoLimits,
        budget: DecodedBudget,
        deadline: Deadline,
        num_threads: int,
    ) -> None:
        self._file = file
        self._sampling = sampling
        self._limits = limits
        self._budget = budget
        self._deadline = deadline
        self._num_threads = num_threads
        self._size: tuple[int, int] | None = None
        decoder = file.decoder
        decoder.thread_count = num_threads
        decoder.thread_type = "AUTO" if num_threads > 1 else "NONE"
        size = (decoder.width, decoder.height)
        budget.take(0, self._working_bytes(size, _USUAL_BITS), size, file.name)

    def decode(self) -> DecodedVideo:
        """Return the timeline of the video, the indices of the sampled frames, and the frames."""
        planned = plan(self._file)
        if planned is not None:
            indices = planned.timeline.sample(self._sampling, self._limits, self._file.name)
            frames = self._decode_planned(planned, indices)
            if frames is not None:
                return planned.timeline, indices, frames
        timeline = self._measure()
        indices = timeline.sample(self._sampling, self._limits, self._file.name)
        return timeline, indices, self._decode_counted(indices)

    def _decode_planned(self, planned: Plan, indices: tuple[int, ...]) -> list[Image.Image] | None:
        """Decode what the sampled frames depend on; returns ``None`` if a frame is absent."""
        packets = self._file.packets
        needed = {planned.order[index] for index in indices}
        stamps = [packets[planned.order[index]].pts for index in indices]
        wanted = frozenset(stamps)
        found: dict[int | None, Image.Image] = {}
        skips = self._file.codec in _SKIPPABLE
        for run in planned.runs(self._file, tuple(needed)):
            for frame in self._frames(run, needed if skips else None):
                if frame.pts in wanted and frame.pts not in found:
                    found[frame.pts] = self._convert(frame, len(indices))
        return [found[stamp] for stamp in stamps] if len(found) == len(wanted) else None

    def _measure(self) -> Timeline:
        """Decode all frames to find out when each is shown."""
        stamps: list[int | None] = []
        last_duration = 0
        for frame in self._frames(range(len(self._file.packets))):
            if len(stamps) == self._limits.max_total_frames:
                raise VideoLimitError(
                    f"{self._file.name} has more frames than "
                    f"max_total_frames={self._limits.max_total_frames} of vlcore.VideoLimits"
                )
            stamps.append(frame.pts)
            last_duration = frame.duration or 0
        if not stamps:
            raise VideoError(f"{self._file.name} has no frame that can be decoded")
        return timeline_from_stamps(stamps, last_duration, self._file)

    def _decode_counted(self, indices: tuple[int, ...]) -> list[Image.Image]:
        wanted = frozenset(indices)
        images = []
        for index, frame in enumerate(self._frames(range(len(self._file.packets)))):
            if index in wanted:
                images.append(self._convert(frame, len(indices)))
            if index == indices[-1]:
                break
        return images

    def _frames(self, run: range, needed: Collection[int] | None = None) -> Iterator[VideoFrame]:
        """Decode packets; frames that are neither needed nor referred to may be left out."""
        decoder = self._file.decoder
        decoder.flush_buffers()
        for index in run:
            self._deadline.check()
            if needed is not None:
                decoder.skip_frame = "DEFAULT" if index in needed else "NONREF"
            yield from map(self._checked, decoder.decode(self._file.packets[index]))
        self._deadline.check()
        yield from map(self._checked, decoder.decode(None))

    def _checked(self, frame: VideoFrame) -> VideoFrame:
        name = self._file.name
        if frame.is_corrupt:
            raise VideoError(f"{name} is damaged or truncated: a frame is incomplete")
        if frame.width < 1 or frame.height < 1:
            raise VideoError(f"{name} has a frame without pixels: {frame.width} x {frame.height}")
        if frame.width * frame.height > self._limits.max_pixels:
            raise VideoLimitError(
                f"{name} has a frame of {frame.width} x {frame.height} = "
                f"{frame.width * frame.height} pixels, more than "
                f"max_pixels={self._limits.max_pixels} of vlcore.VideoLimits"
            )
        return frame

    def _convert(self, frame: VideoFrame, num_frames: int) -> Image.Image:
        self._deadline.check()
        if self._size is None:
            self._size = (frame.width, frame.height)
            self._take_budget(frame, num_frames)
        width, height = self._size
        rgb = frame.reformat(width, height, "rgb24", threads=self._num_threads)
        plane = rgb.planes[0]
        image = Image.frombytes("RGB", self._size, memoryview(plane), "raw", "RGB", plane.line_size)
        method = transpose_method(_orientation(frame))
        return image if method is None else image.transpose(method)

    def _take_budget(self, frame: VideoFrame, num_frames: int) -> None:
        size = (frame.width, frame.height)
        working = self._working_bytes(size, frame.format.padded_bits_per_pixel)
        self._budget.take(num_frames * stored_bytes("RGB", size), working, size, self._file.name)

    def _working_bytes(self, size: tuple[int, int], bits_per_pixel: int) -> int:
        """Return the memory of the decoder's frames, and of one that is converted."""
        frame_bytes = size[0] * size[1] * bits_per_pixel // 8
        return frame_bytes * (_MAX_REFERENCES + self._num_threads) + stored_bytes("RGB", size)


def _orientation(frame: VideoFrame) -> int:
    """Return the orientation of a frame, from 1 to 8, in the numbering of EXIF.

    Source: the display matrix of ``libavutil/display.h`` of FFmpeg.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except (KeyError, ValueError):  # side data of a type that PyAV does not know
        return 1
    if matrix is None:
        return 1
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    signs = tuple((value > 0) - (value < 0) for value in (a, b, c, d))
    return _ORIENTATIONS.get(signs, 1)
