"""``VideoFile``: the compressed frames of a video file in memory, read without decoding any.

A file is read from memory by an allowed demuxer, and can refer to no other file or address. No
decoder is opened to find out what the file contains: all that FFmpeg decodes is decoded by
``video_decoder``, within its limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vlcore.errors import VideoError, VideoLimitError, VlcoreError
from vlcore.media.deadline import Deadline, TimedFile
from vlcore.media.mp4 import check_sample_counts
from vlcore.media.video import VideoLimits
from vlcore.media.video_packets import check_cost, is_shown

if TYPE_CHECKING:
    from av import Packet, VideoCodecContext, VideoStream
    from av.container import InputContainer

CONTAINERS = (
    *("MP4", "MOV", "Matroska", "WebM", "MPEG-TS", "MPEG-PS", "AVI", "FLV", "Ogg"),
    *("animated GIF", "animated WebP"),
)
"""The formats of files, as messages name them. Animations are read by ``animation``."""
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,ogg"
CODECS = (
    "av1",
    "h263",
    "h264",
    "hevc",
    "mjpeg",
    "mpeg1video",
    "mpeg2video",
    "mpeg4",
    "prores",
    "theora",
    "vp8",
    "vp9",
)
"""The allowed codecs, in the names of FFmpeg."""
_MAX_STREAMS = 64
_MAX_GROWTH = 4
"""By which factor frames may be larger than the header states."""
_PROBE_BYTES = 2**20
_BUFFER_BYTES = 2**18


@dataclass(frozen=True)
class VideoFile:
    """The compressed frames of the first video stream of a file.

    The frames before the first keyframe are left out: they cannot be decoded.
    """

    name: str
    packets: tuple[Packet[VideoStream], ...]
    """The compressed frames, in the order in which they are decoded."""
    shown: tuple[bool, ...]
    """Whether each of them is shown."""
    decoder: VideoCodecContext
    codec: str
    """Name of the codec, out of :data:`CODECS`."""
    time_base: Fraction
    """The unit of the packets' times, in seconds."""
    rate: Fraction | None
    """Frames per second that the header states, which may be wrong."""


@contextmanager
def open_video(
    data: bytes, name: str, limits: VideoLimits, deadline: Deadline
) -> Iterator[VideoFile]:
    """Read the compressed frames of a video file.

    Args:
        data: the content of the file.
        name: the name of the video in messages.
        limits: the limits of the video.
        deadline: ends the reading.

    Yields:
        The frames, which can be decoded within the context.

    Raises:
        VideoError: PyAV is not installed; the file is not a video of an allowed format; or it is
            damaged.
        VideoLimitError: the video exceeds a limit.
    """
    av = import_av()
    check_sample_counts(data, name)
    file = TimedFile(data, deadline)
    try:
        container = av.open(
            file,
            "r",
            container_options={
                "format_whitelist": _DEMUXERS,
                "protocol_whitelist": "none",
                "codec_whitelist": "none",
                "max_streams": str(_MAX_STREAMS),
                "probesize": str(_PROBE_BYTES),
                "formatprobesize": str(_PROBE_BYTES),
            },
            buffer_size=_BUFFER_BYTES,
            io_open=_refuse_to_open,
        )
    except VlcoreError:
        raise
    except Exception as error:  # FFmpeg has many types of errors
        deadline.check()
        raise VideoError(
            f"{name} ({len(data)} bytes) is not a video in one of {', '.join(CONTAINERS)}, or its "
            f"header is damaged: {_text(error)}"
        ) from error
    with container, _damage_errors(name, deadline):
        # Times that the file does not state must not be guessed.
        container.flags &= ~av.container.Flags.gen_pts.value
        yield _read(container, name, limits, deadline)


def import_av() -> Any:
    """Import PyAV.

    Raises:
        VideoError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise VideoError(
            f"videos need the package av (PyAV): pip install 'vlcore[video]' ({error})"
        ) from error
    return av


def _read(
    container: InputContainer, name: str, limits: VideoLimits, deadline: Deadline
) -> VideoFile:
    stream = _video_stream(container, name, limits)
    decoder = stream.codec_context
    codec = decoder.codec.canonical_name
    # Coded frames are padded, and the size may change; the visible size is checked afterwards.
    stated_pixels = decoder.width * decoder.height or limits.max_pixels
    max_pixels = min(limits.max_pixels, _MAX_GROWTH * stated_pixels) * 5 // 4 + 2**16
    decoder.options = {"max_pixels": str(max_pixels)}
    packets = _read_packets(container, stream, name, limits, deadline)
    for packet in packets:
        check_cost(packet, codec, max_pixels, name)
    if not packets:
        raise VideoError(f"{name} has no video frame that can be decoded: it has no keyframe")
    return VideoFile(
        name,
        tuple(packets),
        tuple(not packet.is_discard and is_shown(packet, codec) for packet in packets),
        decoder,
        codec,
        stream.time_base or Fraction(1),
        stream.average_rate or None,
    )


def _read_packets(
    container: InputContainer,
    stream: VideoStream,
    name: str,
    limits: VideoLimits,
    deadline: Deadline,
) -> list[Packet[VideoStream]]:
    """Read the packets of a stream from its first keyframe."""
    packets: list[Packet[VideoStream]] = []
    has_keyframe = False
    num_read = num_bytes = 0
    for packet in container.demux(stream):
        deadline.check()
        num_read += 1
        has_keyframe = has_keyframe or packet.is_keyframe
        if packet.is_corrupt:
            raise VideoError(f"{name} is damaged or truncated: frame {num_read} is incomplete")
        # A packet without data stands for a repeated frame or the end of the stream.
        if not packet.size or not has_keyframe:
            continue
        if len(packets) == limits.max_total_frames:
            raise VideoLimitError(
                f"{name} has more frames than max_total_frames={limits.max_total_frames} of "
                "vlcore.VideoLimits"
            )
        num_bytes += packet.size
        if num_bytes > limits.max_bytes:  # Matroska may compress packets
            raise VideoLimitError(
                f"the packets of {name} are larger than max_bytes={limits.max_bytes} of "
                "vlcore.VideoLimits"
            )
        packets.append(packet)
    deadline.check()
    if "mov" in container.format.name and len(stream.index_entries) >= num_read:
        raise VideoError(
            f"{name} is truncated: it has {num_read - 1} of {len(stream.index_entries)} frames"
        )
    return packets


def _video_stream(container: InputContainer, name: str, limits: VideoLimits) -> VideoStream:
    from av.stream import Disposition

    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"{name} has no video: its streams are {', '.join(kinds) or 'none'}")
    stream = streams[0]
    context = stream.codec_context
    codec = getattr(getattr(context, "codec", None), "canonical_name", "unknown")
    if codec not in CODECS:
        raise VideoError(f"{name} is coded as {codec}; one of {', '.join(CODECS)} is expected")
    if context.width * context.height > limits.max_pixels:
        raise VideoLimitError(
            f"{name} is {context.width} x {context.height} = {context.width * context.height} "
            f"pixels, more than max_pixels={limits.max_pixels} of vlcore.VideoLimits"
        )
    return stream


@contextmanager
def _damage_errors(name: str, deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except VlcoreError:
        raise
    except Exception as error:  # decoders raise many types on damaged files
        deadline.check()
        raise VideoError(f"{name} is damaged or truncated: {_text(error)}") from error


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> None:  # noqa: ARG001
    raise VideoError("a video cannot refer to other files or addresses")
