from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlcore import OptionError, Video, VideoError, VideoLimits, VideoSampling

FRAME = Image.new("RGB", (4, 2))


def video(**changes: Any) -> Video:
    values: dict[str, Any] = {
        "frames": (FRAME, FRAME.copy()),
        "times": (0.0, 0.5),
        "duration": 1.0,
        "fps": 2.0,
        "total_frames": 2,
    }
    return Video(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": (), "times": ()}, "at least one frame"),
        ({"frames": (FRAME, FRAME.convert("L"))}, "frame 2 is L"),
        ({"frames": (FRAME, "a.png")}, "frame 2 is str"),
        ({"frames": (FRAME, Image.new("RGB", (2, 4)))}, "frame 1 is 4 x 2, and frame 2 is 2 x 4"),
        ({"times": (0.0,)}, "one time for each of 2 frames"),
        ({"times": (0.5, 0.5)}, "increase from frame to frame"),
        ({"times": (-1.0, 0.5)}, "seconds of at least 0"),
        ({"times": (0.0, math.nan)}, "seconds of at least 0"),
        ({"duration": math.inf}, "duration of a video"),
        ({"fps": -1.0}, "fps of a video"),
        ({"total_frames": 1}, "at least its number of frames, 2"),
    ],
)
def test_what_is_not_a_video_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        video(**changes)


def test_the_key_depends_on_the_content_only() -> None:
    white = Image.new("RGB", (4, 2), "white")
    assert video().key == video().key
    others = [
        video(frames=(FRAME, white)),
        video(times=(0.0, 0.25)),
        video(fps=3.0),
        video(source_key="a"),
        video(source_key="b"),
    ]
    assert len({video().key, *(other.key for other in others)}) == len(others) + 1
    assert video(source_key="a").key == video(source_key="a", frames=(white, white)).key


@pytest.mark.parametrize(
    ("sampling", "total", "fps", "expected"),
    [
        (VideoSampling(), 3, 25.0, (0, 1, 2)),
        (VideoSampling(max_frames=2), 4, 25.0, (0, 2)),
        (VideoSampling(num_frames=4), 10, 25.0, (0, 2, 5, 7)),
        (VideoSampling(num_frames=4, position="middle"), 10, 25.0, (1, 3, 6, 8)),
        (VideoSampling(num_frames=4, position="ends"), 10, 25.0, (0, 3, 6, 9)),
        (VideoSampling(num_frames=1, position="ends"), 10, 25.0, (0,)),
        (VideoSampling(num_frames=8), 3, 25.0, (0, 1, 2)),
        (VideoSampling(fps=2), 75, 25.0, (0, 12, 25, 37, 50, 62)),
        (VideoSampling(fps=2, multiple_of=4), 75, 25.0, (0, 18, 37, 56)),
        (VideoSampling(fps=2, min_frames=8, position="ends"), 15, 5.0, tuple(range(0, 15, 2))),
        (VideoSampling(fps=0.01), 10, 25.0, (0,)),
        (VideoSampling(fps=100), 3, 1.0, (0, 1, 2)),
        (VideoSampling(fps=2), 3, 0.0, (0, 1, 2)),
        (VideoSampling(num_frames=2, multiple_of=2), 1, 25.0, (0,)),
        (VideoSampling(num_frames=6, multiple_of=4), 5, 25.0, (0, 1, 2, 3)),
    ],
)
def test_frames_are_distributed_evenly(
    sampling: VideoSampling, total: int, fps: float, expected: tuple[int, ...]
) -> None:
    assert sampling.indices(total, fps) == expected


@pytest.mark.parametrize("count", [1, 2, 7, 8, 13])
@pytest.mark.parametrize("total", [13, 15, 16, 77, 301, 5000])
def test_frames_are_those_of_the_reference_implementation(total: int, count: int) -> None:
    # As `sample_frames` of Qwen2-VL, InternVL and Qwen3-VL computes them. `torch.arange` returns a
    # frame too many where its step is rounded down.
    step = total / count
    expected: dict[str, Any] = {
        "start": torch.arange(0, total, step).int()[:count],
        "middle": torch.arange(step / 2, total, step).int()[:count],
        "ends": np.linspace(0, total - 1, count).round().astype(int),
    }
    for position, indices in expected.items():
        sampling = VideoSampling(num_frames=count, position=position)  # type: ignore[arg-type]
        assert sampling.indices(total, 25.0) == tuple(indices.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps must be a positive number"),
        ({"fps": math.nan}, "fps must be a positive number"),
        ({"num_frames": 2.5}, "num_frames must be a positive number"),
        ({"min_frames": None}, "min_frames must be a positive number"),
        ({"multiple_of": True}, "multiple_of must be a positive number"),
        ({"position": "end"}, "position must be one of start, middle, ends"),
        ({"fps": 1, "num_frames": 4}, "not by both"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        VideoSampling(**options)


@pytest.mark.parametrize("name", [field.name for field in fields(VideoLimits)])
def test_a_limit_is_a_positive_number(name: str) -> None:
    values: tuple[Any, ...] = (-1, math.nan, "1", None, True)
    for value in values:
        with pytest.raises(OptionError, match=f"{name} must be a positive number"):
            VideoLimits(**{name: value})
