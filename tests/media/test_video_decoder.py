from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from video_files import SIZE, number_of, sound_file, video_file, video_of_two_sizes

from vlcore import Video, VideoError, VideoLimitError, VideoLimits, VideoSampling, load_video
from vlcore.media import video_decoder
from vlcore.media import video_file as video_file_module
from vlcore.media.policy import DecodedBudget
from vlcore.media.video_decoder import decode_video

av = pytest.importorskip("av", reason="the extra vlcore[video] is not installed")

QUIET = {"x265-params": "log-level=none"}
FILES: dict[str, dict[str, Any]] = {
    "h264 in mp4": {},
    "h264 in mkv": {"container": "matroska"},
    "h264 in mpeg-ts": {"container": "mpegts"},
    "h264 in flv": {"container": "flv"},
    "h264 in avi, without times": {"container": "avi"},
    "h264 in fragments": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "h264 with sound": {"with_sound": True},
    "h264 without b-frames": {"max_b_frames": 0},
    "h264 with open groups": {"options": {"x264-params": "open-gop=1:bframes=2"}},
    "h264 with one keyframe": {"gop": 1000},
    "h264 with 10 bits": {"pixels": "yuv420p10le"},
    "hevc": {"codec": "libx265", "options": QUIET},
    "vp8": {"codec": "libvpx", "container": "webm"},
    "vp9": {"codec": "libvpx-vp9", "container": "webm"},
    "mpeg-4 in avi": {"codec": "mpeg4", "container": "avi"},
    "mpeg-2 in mpeg-ps": {"codec": "mpeg2video", "container": "mpeg", "fps": 25},
    "jpeg in mov": {"codec": "mjpeg", "container": "mov", "pixels": "yuvj420p"},
    "prores": {
        "codec": "prores_ks",
        "container": "mov",
        "pixels": "yuv422p10le",
        "max_b_frames": 0,
    },
}
NUM_FRAMES = 14


def decode(
    data: bytes,
    sampling: VideoSampling | None = None,
    limits: VideoLimits | None = None,
    budget: DecodedBudget | None = None,
    num_threads: int = 1,
) -> Video:
    sampling = VideoSampling() if sampling is None else sampling
    limits = VideoLimits() if limits is None else limits
    return decode_video(data, "'it'", sampling, limits, budget, num_threads=num_threads)


def numbers(video: Video) -> list[int]:
    return [number_of(frame) for frame in video.frames]


def pixels(video: Video) -> list[bytes]:
    return [frame.tobytes() for frame in video.frames]


# -- which frames


@pytest.mark.parametrize("name", FILES)
def test_the_sampled_frames_are_exactly_the_named_ones(name: str) -> None:
    data = video_file(NUM_FRAMES, **FILES[name])
    whole = decode(data)
    fps = FILES[name].get("fps", 4)
    assert numbers(whole) == list(range(NUM_FRAMES))
    assert whole.total_frames == NUM_FRAMES
    assert whole.fps == fps
    assert whole.duration == pytest.approx(NUM_FRAMES / fps, abs=0.01)
    assert whole.times == pytest.approx([i / fps for i in range(NUM_FRAMES)], abs=0.001)
    for sampling in (VideoSampling(num_frames=3), VideoSampling(num_frames=5, position="ends")):
        indices = sampling.indices(NUM_FRAMES, fps)
        sampled = decode(data, sampling)
        assert pixels(sampled) == [pixels(whole)[index] for index in indices]
        assert sampled.times == tuple(whole.times[index] for index in indices)
        assert sampled.total_frames == NUM_FRAMES


def test_frames_are_those_that_pyav_decodes() -> None:
    data = video_file(NUM_FRAMES)
    with av.open(io.BytesIO(data)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for frame, pixel in zip(decode(data).frames, expected, strict=True):
        assert np.array_equal(np.asarray(frame), pixel)


def test_threads_do_not_change_the_frames() -> None:
    data = video_file(NUM_FRAMES)
    sampling = VideoSampling(num_frames=5)
    assert pixels(decode(data, sampling, num_threads=4)) == pixels(decode(data, sampling))


def test_times_of_a_variable_frame_rate_are_those_of_the_file() -> None:
    times = [0, 10, 500, 510, 2000, 2001, 4000, 5000]
    video = decode(video_file(len(times), times_ms=times), VideoSampling(num_frames=4))
    assert video.times == pytest.approx([0, 0.5, 2.0, 4.0])
    assert numbers(video) == [0, 2, 4, 6]
    assert video.fps == pytest.approx(8 / video.duration)
    assert 5.0 < video.duration < 6.0


def test_groups_of_frames_without_a_sampled_one_are_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded = []
    frames = video_decoder._Decoder._frames

    def spy(decoder: Any, run: range, *needed: Any) -> Any:
        decoded.append(run)
        return frames(decoder, run, *needed)

    monkeypatch.setattr(video_decoder._Decoder, "_frames", spy)
    data = video_file(16, max_b_frames=0, options={"sc_threshold": "0"})
    decode(data, VideoSampling(num_frames=2))
    assert decoded == [range(1), range(8, 9)]
    decoded.clear()
    decode(data, VideoSampling(num_frames=2, position="ends"))
    assert decoded == [range(1), range(12, 16)]
    decoded.clear()
    decode(data)
    assert decoded == [range(16)]


@pytest.mark.parametrize("field", ["duration", "frames"])
def test_what_a_header_states_of_the_length_is_not_believed(field: str) -> None:
    data = bytearray(video_file(NUM_FRAMES))
    if field == "duration":
        position = data.index(b"mvhd") + 20  # version and flags, two times, time scale
        data[position : position + 4] = (2**31 - 1).to_bytes(4)
        media = data.index(b"mdhd") + 20
        data[media : media + 4] = (1).to_bytes(4)
        video = decode(bytes(data), VideoSampling(fps=2))
    else:
        avi = bytearray(video_file(NUM_FRAMES, container="avi", codec="mpeg4"))
        position = avi.index(b"strh") + 8 + 32  # dwLength
        avi[position : position + 4] = (10**6).to_bytes(4, "little")
        video = decode(bytes(avi), VideoSampling(fps=2))
    assert video.total_frames == NUM_FRAMES
    assert video.duration == pytest.approx(NUM_FRAMES / 4)
    assert numbers(video) == [0, 2, 4, 6, 8, 10, 12]


def test_frames_that_an_edit_list_hides_are_decoded_but_not_shown() -> None:
    data = bytearray(video_file(12, max_b_frames=0))
    times = data.index(b"mdhd") + 16
    position = data.index(b"elst") + 4 + 8 + 4  # version and flags, count, duration
    second = int.from_bytes(data[times : times + 4])
    data[position : position + 4] = (second // 2).to_bytes(4)  # two frames
    assert numbers(decode(bytes(data), VideoSampling(num_frames=5))) == [2, 4, 6, 8, 10]
    assert decode(bytes(data)).times[:3] == pytest.approx((0, 0.25, 0.5))


def test_frames_before_the_first_keyframe_are_left_out() -> None:
    data = video_file(12, container="mpegts", max_b_frames=0)
    packets = [data[start : start + 188] for start in range(0, len(data), 188)]
    video = decode(b"".join(packets[20:]))
    assert numbers(video) == list(range(12 - video.total_frames, 12))
    assert 0 < video.total_frames < 12


def test_a_stream_that_is_refreshed_gradually_is_decoded_exactly() -> None:
    data = video_file(24, options={"x264-params": "intra-refresh=1:keyint=6"})
    sampled = decode(data, VideoSampling(num_frames=3, position="ends"))
    assert pixels(sampled) == [pixels(decode(data))[index] for index in (0, 12, 23)]


def test_a_recording_without_a_length_is_counted() -> None:
    options = {"live": "1"}  # as browsers record
    data = video_file(12, codec="libvpx", container="webm", container_options=options)
    assert numbers(decode(data)) == list(range(12))


def test_other_streams_and_attachments_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "video.mkv"
    with av.open(io.BytesIO(video_file(4))) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        output.add_attachment("font.ttf", "application/x-truetype-font", b"a font")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    assert numbers(decode(path.read_bytes())) == [0, 1, 2, 3]


# -- what the frames look like


def matrix(orientation: int) -> bytes:
    """The display matrix of an MP4 file."""
    (signs,) = (key for key, value in video_decoder._ORIENTATIONS.items() if value == orientation)
    a, b, c, d = (sign * 65536 for sign in signs)
    rows = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return b"".join(value.to_bytes(4, signed=True) for value in rows)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_in_the_metadata_is_applied(orientation: int) -> None:
    data = bytearray(video_file(4))
    position = data.index(b"tkhd") + 4 + 40
    assert data[position : position + 36] == matrix(1)
    stored = decode(bytes(data)).frames[3]
    data[position : position + 36] = matrix(orientation)
    shown = decode(bytes(data)).frames[3]
    # The same as for an image with this orientation.
    image, buffer = Image.new("RGB", SIZE), io.BytesIO()
    image.paste(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(buffer, "PNG", exif=exif)
    from vlcore import load_image

    assert np.array_equal(np.asarray(shown), np.asarray(load_image(buffer.getvalue())))


def test_a_rotation_by_90_degrees_is_clockwise_as_in_phones() -> None:
    data = bytearray(video_file(4))
    position = data.index(b"tkhd") + 4 + 40
    rows = (0, 65536, 0, -65536, 0, 0, SIZE[1] << 16, 0, 1 << 30)
    data[position : position + 36] = b"".join(value.to_bytes(4, signed=True) for value in rows)
    upright, shown = (decode(file).frames[3] for file in (video_file(4), bytes(data)))
    assert np.array_equal(np.asarray(shown), np.rot90(np.asarray(upright), -1))


def test_frames_of_another_size_are_scaled_to_the_first() -> None:
    video = decode(video_of_two_sizes(SIZE, (64, 32)))
    assert {frame.size for frame in video.frames} == {SIZE}
    assert video.total_frames == 8
    assert numbers(video) == [0, 1, 2, 3] * 2


# -- what is refused


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize(
    "options",
    [
        {"container_options": {"movflags": "faststart"}},
        {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
        {},
    ],
    ids=["header first", "fragments", "header last"],
)
def test_a_truncated_mp4_file_is_refused_or_ends_early(
    options: dict[str, Any], share: float
) -> None:
    data = video_file(NUM_FRAMES, max_b_frames=0, **options)
    try:
        video = decode(data[: int(len(data) * share)])
    except VideoError:
        return
    assert numbers(video) == list(range(video.total_frames))
    # Fragments may be absent as a whole; only metadata follows the frames in the other files.
    assert "frag" in str(options) or video.total_frames == NUM_FRAMES


def test_a_truncated_file_with_an_index_is_refused() -> None:
    data = video_file(NUM_FRAMES, container_options={"movflags": "faststart"})
    with pytest.raises(VideoError, match="truncated"):
        decode(data[:-20])


def test_damage_is_an_error_where_sampled_frames_depend_on_it() -> None:
    data = bytearray(video_file(NUM_FRAMES, container_options={"movflags": "faststart"}))
    start = data.index(b"mdat")
    for position in range(start + 900, len(data)):
        data[position] ^= 0x55
    with pytest.raises(VideoError, match="damaged or truncated"):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"abc" * 100, "is not a video in one of MP4, MOV"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a video in one of"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is not a video in one of"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a video in one of"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nm=video 1 RTP/AVP 96\n", "is not a video in one"),
        (b"<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>", "is not a video in one of"),
    ],
    ids=["empty", "text", "image", "playlist", "concat", "session", "dash"],
)
def test_what_is_not_a_video_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        decode(data)


def test_a_file_without_video_is_refused() -> None:
    with pytest.raises(VideoError, match="has no video: its streams are audio"):
        decode(sound_file())


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(VideoError, match="is coded as ffv1"):
        decode(video_file(2, codec="ffv1", container="matroska", max_b_frames=0))


def test_without_pyav_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(VideoError, match=r"pip install 'vlcore\[video\]'"):
        decode(b"abc")


def test_ffmpeg_writes_nothing_to_the_standard_error_stream(
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = bytearray(video_file(NUM_FRAMES, container="mpegts"))
    for position in range(1000, len(data), 500):
        data[position] ^= 0xFF
    capfd.readouterr()
    for damaged in (bytes(data), bytes(data[1000:]), b"\0\0\1\xba" + bytes(1000)):
        with pytest.raises(VideoError):
            decode(damaged)
    assert capfd.readouterr().err == ""


def test_a_container_cannot_open_other_files() -> None:
    with pytest.raises(VideoError, match="cannot refer to other files"):
        video_file_module._refuse_to_open("file:///etc/passwd", 0, {})


# -- limits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_pixels": 511}, "is 32 x 16 = 512 pixels, more than max_pixels=511"),
        ({"max_duration_s": 3.0}, "takes 3.5 s, more than max_duration_s=3"),
        ({"max_total_frames": 13}, "more frames than max_total_frames=13"),
        ({"max_frames": 13}, "has 14 sampled frames, more than max_frames=13"),
        ({"max_decoded_bytes": 14 * 512 * 4}, "more than max_decoded_bytes="),
    ],
)
@pytest.mark.parametrize("container", ["mp4", "avi"])
def test_a_video_beyond_a_limit_is_refused(
    container: str, limits: dict[str, Any], message: str
) -> None:
    with pytest.raises(VideoLimitError, match=message):
        decode(video_file(NUM_FRAMES, container=container), limits=VideoLimits(**limits))


def test_a_frame_that_is_larger_than_the_header_states_is_not_decoded() -> None:
    data = video_file(2, size=(640, 640), container="mp4")
    wide = (640).to_bytes(2) + (640).to_bytes(2)
    data = data.replace(wide, (32).to_bytes(2) + (16).to_bytes(2))
    with pytest.raises(VideoError, match="damaged or truncated"):
        decode(data, limits=VideoLimits(max_pixels=640))


def test_the_memory_of_the_decoder_is_counted_before_it_decodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(video_decoder._Decoder, "_frames", None)
    with pytest.raises(VideoLimitError, match="max_decoded_bytes=1000"):
        decode(video_file(4), limits=VideoLimits(max_decoded_bytes=1000))


def test_packets_that_are_inflated_count_against_the_limit_of_bytes() -> None:
    data = video_file(4)
    with pytest.raises(VideoLimitError, match="the packets of 'it' are larger than max_bytes=100"):
        decode(data, limits=VideoLimits(max_bytes=100))  # of packets, whatever the file's size is


def test_the_budget_of_a_request_counts_its_videos() -> None:
    data = video_file(4)
    one = DecodedBudget(VideoLimits())
    decode(data, budget=one)
    budget = DecodedBudget(VideoLimits(max_decoded_bytes=one._num_bytes + one._num_extra_bytes))
    decode(data, budget=budget)
    with pytest.raises(VideoLimitError, match="max_decoded_bytes"):
        decode(data, budget=budget)


@pytest.mark.parametrize("num_checks", [0, 3, 12, 20])
def test_decoding_ends_when_its_time_is_over(
    num_checks: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = video_file(NUM_FRAMES)
    capfd.readouterr()
    clock = iter([*[0.0] * (num_checks + 1), *[10.0] * 1000])
    monkeypatch.setattr("vlcore.media.deadline.monotonic", lambda: next(clock))
    with pytest.raises(VideoLimitError, match="decode_timeout_s=9"):
        decode(data, limits=VideoLimits(decode_timeout_s=9))
    assert capfd.readouterr().err == ""


def test_loading_without_a_sampling_takes_all_frames() -> None:
    assert len(load_video(video_file(5)).frames) == 5
