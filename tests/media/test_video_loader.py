from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from video_files import SIZE, frame_image, number_of, video_file

from vlcore import (
    ImageAccess,
    ImageLimits,
    OptionError,
    Video,
    VideoDownloadError,
    VideoError,
    VideoLimitError,
    VideoLimits,
    VideoSampling,
    load_video,
)
from vlcore.media import source

pytest.importorskip("av", reason="the extra vlcore[video] is not installed")

TWO = VideoSampling(num_frames=2)
DATA_URL = "data:video/mp4;base64," + base64.b64encode(video_file(4)).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    path.write_bytes(video_file(4))
    return path


def numbers(video: Video) -> list[int]:
    return [number_of(frame) for frame in video.frames]


def test_a_video_is_loaded_from_every_source(path: Path) -> None:
    expected = load_video(video_file(4), TWO)
    assert numbers(expected) == [0, 2]
    for given in (path, str(path), path.as_uri(), DATA_URL, bytearray(video_file(4))):
        video = load_video(given, TWO)  # type: ignore[arg-type]
        assert numbers(video) == [0, 2]
        assert video.key == expected.key
    assert load_video(expected) is expected


def test_the_key_depends_on_the_file_and_the_sampling() -> None:
    files = (video_file(4), video_file(5))
    keys = {load_video(file, sampling).key for file in files for sampling in (TWO, None)}
    assert len(keys) == 4


def test_a_url_is_downloaded_by_the_rules_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def download(url: str, name: str, *rules: Any) -> bytes:
        asked.append((url, *rules))
        return video_file(4)

    monkeypatch.setattr(source, "download", download)
    limits, access = VideoLimits(max_bytes=10**6), ImageAccess()
    video = load_video("https://videos.example/a.mp4", TWO, limits, access)
    assert numbers(video) == [0, 2]
    assert asked == [("https://videos.example/a.mp4", limits, access)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("http://127.0.0.1/a.mp4", VideoDownloadError, "its host was not found or is not allowed"),
        ("http://a:b@example.com/a.mp4", VideoDownloadError, "a URL with a user"),
        ("http://example.com:81/a.mp4", VideoDownloadError, "port 81 is not allowed"),
        ("/etc/hostname", VideoError, "not in a directory from which files may be read"),
        ("file:///etc/hostname", VideoError, "not in a directory from which files may be read"),
        ("data:video/mp4", VideoError, "data:video/mp4;base64,… is expected"),
        ("data:video/mp4;base64,!", VideoError, "damaged base64"),
        (DATA_URL[22:], VideoError, "write data:video/mp4;base64, before it"),
    ],
)
def test_sources_of_untrusted_clients_are_checked(
    given: str, error: type[VideoError], message: str
) -> None:
    access = ImageAccess(allowed_ports=(80, 443))
    with pytest.raises(error, match=message):
        load_video(given, TWO, VideoLimits(connect_timeout_s=1.0), access)


def test_urls_can_be_forbidden() -> None:
    with pytest.raises(VideoDownloadError, match="URLs are not allowed here"):
        load_video("https://videos.example/a.mp4", access=ImageAccess(urls=False))


def test_sources_are_limited_in_size(path: Path) -> None:
    limits = VideoLimits(max_bytes=100)
    for given in (path, video_file(4), DATA_URL):
        with pytest.raises(VideoLimitError, match=r"max_bytes=100 of vlcore\.VideoLimits"):
            load_video(given, limits=limits)


@pytest.mark.parametrize("given", [7, None, {"url": "a.mp4"}, Image.new("RGB", (4, 4))])
def test_what_is_not_a_source_is_refused(given: Any) -> None:
    with pytest.raises(VideoError, match="a video is a path, a URL, bytes, a list of frames"):
        load_video(given)


def test_an_absent_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no file"):
        load_video(tmp_path / "absent.mp4")


# -- lists of frames


def test_a_list_of_frames_is_a_video(tmp_path: Path) -> None:
    images = [frame_image(number) for number in range(3)]
    images[1].save(tmp_path / "1.png")
    video = load_video([images[0], tmp_path / "1.png", images[2]], TWO, fps=4)
    assert numbers(video) == [0, 1, 2]  # they have been sampled already
    assert list(video.times) == [0, 0.25, 0.5]
    assert [video.duration, video.fps, video.total_frames] == [0.75, 4, 3]
    assert load_video(tuple(images)).fps == 2.0


@pytest.mark.parametrize(
    ("frames", "options", "error", "message"),
    [
        ([], {}, VideoError, "at least one frame"),
        (["absent.png"], {}, VideoError, "frame 1 of 1: there is no file"),
        ([frame_image(0), b"abc"], {}, VideoError, "frame 2 of 2: an image of 3 bytes"),
        ([frame_image(0), frame_image(0, (4, 4))], {}, VideoError, "have one size"),
        ([frame_image(0)] * 3, {"limits": VideoLimits(max_frames=2)}, VideoLimitError, "3 frames"),
        (
            [frame_image(0)],
            {"limits": VideoLimits(max_pixels=511)},
            VideoLimitError,
            "frame 1 of 1: .* more than max_pixels=511",
        ),
        (
            [frame_image(0)],
            {"image_limits": ImageLimits(max_pixels=511)},
            VideoLimitError,
            "frame 1 of 1: .* more than max_pixels=511",
        ),
        ([frame_image(0)], {"fps": 0}, OptionError, "fps of a list of frames"),
    ],
)
def test_a_list_that_is_not_a_video_is_refused(
    frames: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_video(frames, **options)


def test_the_files_of_a_list_are_checked_as_images_are() -> None:
    with pytest.raises(VideoError, match=r"frame 1 of 1: .* not in a directory from which"):
        load_video(["/etc/hostname"], access=ImageAccess())
    assert load_video([frame_image(1)], access=ImageAccess()).size == SIZE
