from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grey_model import FakeModel, GatedModel, image, outcome, run, values
from PIL import Image

from vlcore.errors import OptionError, VideoError, VideoLimitError
from vlcore.media.undecoded_video import UndecodedVideo
from vlcore.media.video import Video, VideoLimits, VideoSampling
from vlcore.vision import preprocessing
from vlcore.vision.encoder import ImageEncoder


class VideoModel(FakeModel):
    """Returns one embedding with the sum of the grey values of a video's frames."""

    video_options = frozenset({"scale"})
    video_sampling = VideoSampling(fps=2, max_frames=6)

    def preprocess_frames(self, video: Video, *, scale: int = 1) -> int:  # type: ignore[override]
        greys = [frame.getpixel((0, 0))[0] for frame in video.frames]  # type: ignore[index]
        if 66 in greys:
            raise RuntimeError("a broken frame")
        return sum(greys) * scale


class GatedVideoModel(VideoModel, GatedModel):
    pass


def video(*greys: int, fps: float = 1.0) -> Video:
    frames = tuple(Image.new("RGB", (2, 2), (grey,) * 3) for grey in greys)
    times = tuple(number / fps for number in range(len(greys)))
    return Video(frames, times, len(greys) / fps, fps, len(greys))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[VideoSampling]:
    """How the decoder was asked to sample; it returns two frames of the file's first byte."""
    samplings: list[VideoSampling] = []

    def decode(data: bytes, name: str, sampling: VideoSampling, *_: Any) -> Video:
        samplings.append(sampling)
        if data == b"bad":
            raise VideoError(f"{name} is damaged")
        return video(data[0], data[0])

    monkeypatch.setattr(preprocessing, "decode_video", decode)
    return samplings


def test_videos_and_images_of_different_requests_share_a_forward() -> None:
    async def body() -> None:
        model = GatedVideoModel()
        async with ImageEncoder(model) as encoder:
            first = asyncio.create_task(encoder.encode([image(9)]))
            await model.wait_until_entered()
            second = asyncio.create_task(encoder.encode([video(1, 2), image(5)]))
            third = asyncio.create_task(encoder.encode([image(7), video(3, 4, 5)]))
            while len(encoder._queue) < 4:
                await asyncio.sleep(0)
            model.gate.release(2)
            assert values(await first) == [9]
            assert (values(await second), values(await third)) == ([3, 5], [7, 12])
        assert [len(batch) for batch in model.batches] == [1, 4]

    run(body)


def test_a_video_is_encoded_once_for_the_same_frames_times_and_options() -> None:
    async def body() -> None:
        model = VideoModel()
        async with ImageEncoder(model) as encoder:
            await encoder.encode([video(1, 2)])
            assert values(await encoder.encode([video(1, 2)])) == [3]
            assert encoder.stats().num_encoded == 1
            await encoder.encode([video(1, 2, fps=2.0)])
            await encoder.encode([video(2, 1)])
            assert values(await encoder.encode([video(1, 2)], [{"scale": 2}])) == [6]
            assert encoder.stats().num_encoded == 4

    run(body)


def test_prefix_caching_tells_videos_apart_by_their_content() -> None:
    async def body() -> None:
        async with ImageEncoder(VideoModel()) as encoder:
            same, again, other = await encoder.prepare([video(1, 2), video(1, 2), video(2, 1)])
            assert same.key == again.key != other.key

    run(body)


def test_a_model_that_takes_no_videos_refuses_them_before_they_are_read() -> None:
    async def body() -> None:
        async with ImageEncoder(FakeModel()) as encoder:
            for source in (video(1), UndecodedVideo("/no/such.mp4")):
                for method in (encoder.encode, encoder.prepare, encoder.load):
                    with pytest.raises(VideoError, match="takes images only here, and no videos"):
                        await method([image(1), source])

    run(body)


def test_a_file_is_sampled_as_the_model_or_the_request_states(
    decoded: list[VideoSampling],
) -> None:
    async def body() -> None:
        async with ImageEncoder(VideoModel(), video_limits=VideoLimits(max_frames=4)) as encoder:
            for sampling in ({}, {"num_frames": 3}, {"fps": 0.5, "max_frames": 9}):
                await encoder.encode([UndecodedVideo(b"\x05", sampling)])

    run(body)
    assert decoded == [
        VideoSampling(fps=2, max_frames=4),
        VideoSampling(num_frames=3, max_frames=4),
        VideoSampling(fps=0.5, max_frames=9),
    ]


def test_a_file_is_decoded_once_for_each_sampling(
    decoded: list[VideoSampling], tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\x05")

    async def body() -> None:
        async with ImageEncoder(VideoModel()) as encoder:
            for source in (b"\x05", path, str(path), path.as_uri(), "data:video/mp4;base64,BQ=="):
                assert values(await encoder.encode([UndecodedVideo(source)])) == [10]
            await encoder.encode([UndecodedVideo(path, {"num_frames": 1})])

    run(body)
    assert len(decoded) == 2


def test_frames_are_loaded_from_their_own_sources(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.new("L", (2, 2), 7).save(path)

    async def body() -> None:
        async with ImageEncoder(VideoModel()) as encoder:
            frames = UndecodedVideo((image(5), path), {"fps": 2})
            assert values(await encoder.encode([frames])) == [12]
            (loaded,) = await encoder.load([frames])
            assert isinstance(loaded, Video)
            assert (loaded.times, loaded.fps) == ((0, 0.5), 2)

    run(body)


def test_a_bad_video_fails_alone_and_is_named(decoded: list[VideoSampling]) -> None:
    async def body() -> None:
        async with ImageEncoder(VideoModel()) as encoder:
            good = asyncio.create_task(outcome(encoder.encode([image(1), video(2)])))
            broken = await outcome(encoder.encode([image(1), video(66, 1)]))
            damaged = await outcome(encoder.encode([UndecodedVideo(b"bad")]))
            assert isinstance(broken, VideoError)
            assert "video 1 of 1 (2 frames of 2 x 2): VideoModel.preprocess_frames" in str(broken)
            assert isinstance(damaged, VideoError)
            assert "video 1 of 1 is damaged" in str(damaged)
            assert await good == [1, 2]

    run(body)


@pytest.mark.parametrize(
    ("videos", "options", "error", "message"),
    [
        ([video(1)] * 3, None, VideoLimitError, "3 videos, more than max_videos=2"),
        ([video(1)], [{"size": 1}], OptionError, "unknown video option.* size: .* scale"),
        ([UndecodedVideo(b"\x05", {"fps": -1})], None, OptionError, "fps must be a positive"),
    ],
)
def test_what_is_out_of_range_is_refused(
    videos: list[Any], options: Any, error: type[Exception], message: str
) -> None:
    async def body() -> None:
        async with ImageEncoder(VideoModel(), video_limits=VideoLimits(max_videos=2)) as encoder:
            with pytest.raises(error, match=message):
                await encoder.encode(videos, options)

    run(body)


def test_the_number_of_images_leaves_out_videos() -> None:
    counts: list[int] = []

    class Counting(VideoModel):
        def request_options(self, num_images: int) -> dict[str, int]:
            counts.append(num_images)
            return {}

    async def body() -> None:
        async with ImageEncoder(Counting()) as encoder:
            await encoder.encode([image(1), video(1), video(2)])

    run(body)
    assert counts == [1]
