from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlcore import Video, VideoError, VideoLimitError, VideoLimits, VideoSampling, load_video

COLORS = ("red", "lime", "blue", "white", "black")


def animation(container: str, durations: list[int], size: tuple[int, int] = (8, 4)) -> bytes:
    frames = [Image.new("RGB", size, color) for color in COLORS[: len(durations)]]
    buffer = io.BytesIO()
    # Pillow states the duration of an image too, so a file of one frame is written without.
    options = {"duration": durations, "save_all": True} if len(frames) > 1 else {}
    if container == "WEBP":
        options["lossless"] = True
    frames[0].save(buffer, container, append_images=frames[1:], **options)
    return buffer.getvalue()


def load(data: bytes, sampling: VideoSampling | None = None, **limits: Any) -> Video:
    return load_video(data, sampling, VideoLimits(**limits))


@pytest.mark.parametrize("container", ["GIF", "WEBP"])
def test_an_animation_is_a_video_whose_frames_are_shown_for_their_durations(
    container: str,
) -> None:
    data = animation(container, [100, 200, 300, 400])
    video = load(data)
    assert video.times == pytest.approx((0, 0.1, 0.3, 0.6))
    assert video.duration == pytest.approx(1.0)
    assert video.fps == pytest.approx(4.0)
    assert [frame.getpixel((3, 2)) for frame in video.frames] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255),
    ]  # fmt: skip
    sampled = load(data, VideoSampling(num_frames=2))
    assert sampled.total_frames == 4
    assert sampled.times == (video.times[0], video.times[2])
    assert sampled.frames[1].tobytes() == video.frames[2].tobytes()


def test_transparent_pixels_of_a_frame_show_the_frame_before() -> None:
    first = Image.new("RGBA", (8, 4), "red")
    second = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    second.paste((0, 0, 255, 255), (0, 0, 4, 4))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second], disposal=1)
    frame = np.asarray(load(buffer.getvalue()).frames[1])
    assert frame[0, 0].tolist() == [0, 0, 255]
    assert frame[0, 7].tolist() == [255, 0, 0]


def test_a_frame_without_a_duration_is_shown_as_long_as_in_browsers() -> None:
    assert load(animation("GIF", [0, 0])).duration == pytest.approx(0.2)


@pytest.mark.parametrize("container", ["GIF", "WEBP"])
def test_a_file_of_one_frame_is_an_image(container: str) -> None:
    with pytest.raises(VideoError, match="is an image of one frame"):
        load(animation(container, [0]))


@pytest.mark.parametrize("container", ["GIF", "WEBP"])
def test_a_damaged_animation_is_an_error(container: str) -> None:
    data = animation(container, [100, 200, 300], (64, 64))
    with pytest.raises(VideoError, match="is damaged"):
        load(data[: len(data) // 2])


def test_a_frame_that_is_larger_than_the_animation_is_refused() -> None:
    data = bytearray(animation("GIF", [100, 100]))
    position = data.rindex(b"\x2c\0\0\0\0")  # the image descriptor of the second frame
    data[position + 5 : position + 9] = b"\xff\x7f\xff\x7f"
    with pytest.raises(VideoError, match="is damaged"):
        load(bytes(data))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_pixels": 31}, "is 8 x 4 = 32 pixels"),
        ({"max_total_frames": 2}, "more frames than max_total_frames=2"),
        ({"max_frames": 2}, "has 3 sampled frames"),
        ({"max_duration_s": 0.5}, "takes 0.6 s"),
        ({"max_decoded_bytes": 500}, "max_decoded_bytes=500"),
    ],
)
def test_an_animation_beyond_a_limit_is_refused(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(VideoLimitError, match=message):
        load(animation("GIF", [100, 200, 300]), **limits)


def test_decoding_an_animation_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0] * 4 + [10.0] * 1000)
    monkeypatch.setattr("vlcore.media.deadline.monotonic", lambda: next(clock))
    with pytest.raises(VideoLimitError, match="decode_timeout_s=9"):
        load(animation("WEBP", [100, 200, 300]), decode_timeout_s=9)
