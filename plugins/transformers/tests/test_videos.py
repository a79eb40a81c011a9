"""Videos are read, encoded and answered as transformers' own processors and models do."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers_families.checkpoints import write_checkpoint
from transformers_families.comparison import compare_inputs, compare_token_ids
from transformers_families.conversations import CLIP, OTHER, sample_video, video_conversations
from transformers_families.runs import (
    PLUGIN,
    Answer,
    FamilyReference,
    answer_concurrently,
    make_reference,
)
from vl_plugin_transformers.families import FAMILIES
from vl_plugin_transformers.frames import FrameProcessor
from vl_plugin_transformers.processor import describe_video

import vlcore
from vlcore import ConfigError, Video, VideoError, VideoSampling

every_family = pytest.mark.parametrize(
    "name", sorted(name for name, family in FAMILIES.items() if family.video)
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    directory = tmp_path_factory.mktemp("videos")
    yield cache(lambda name: make_reference(directory / name, name, prompts=video_conversations()))
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def answers(reference: Callable[[str], FamilyReference]) -> Callable[[str], dict[str, Answer]]:
    def answer(name: str) -> dict[str, Answer]:
        expected = reference(name)
        return answer_concurrently(expected.checkpoint.directory, expected.prompts)

    return cache(answer)


@every_family
@pytest.mark.slow
def test_videos_equal_those_of_transformers(
    name: str,
    reference: Callable[[str], FamilyReference],
    answers: Callable[[str], dict[str, Answer]],
) -> None:
    expected = reference(name).expected
    for label, prompt in expected.items():
        compare_token_ids(answers(name)[label], prompt, label)
        compare_inputs(answers(name)[label], prompt, label)
    assert {label: answer.token_ids for label, answer in answers(name).items()} == {
        label: prompt.answer for label, prompt in expected.items()
    }


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="make test-torchvision brings it"
)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("InternVLVideoProcessor", {}),
        ("Qwen2VLVideoProcessor", {}),
        ("Qwen2VLVideoProcessor", {"min_pixels": 3136, "max_pixels": 19600, "resample": 2}),
        ("Qwen2VLVideoProcessor", {"cap_pixels_per_frame": True, "max_video_tokens": 30}),
        ("Qwen3VLVideoProcessor", {}),
        ("Qwen3VLVideoProcessor", {"cap_pixels_per_frame": True, "max_video_tokens": 6}),
    ],
)
def test_pixels_equal_those_of_the_video_processors_of_transformers(
    name: str, settings: dict[str, Any]
) -> None:
    reference = getattr(transformers, name).from_dict(dict(settings))
    processor = FrameProcessor(name, settings)
    for num_frames in (2, 3, 5):
        for number, size in enumerate(((90, 60), (17, 900), (640, 360), (20, 20))):
            frames = sample_video(number, size, num_frames, 4.0).frames
            expected = reference([list(frames)], do_sample_frames=False, return_tensors="pt")
            for key, value in processor(frames).items():
                assert torch.equal(value, expected[key]), (num_frames, size, key)


def test_times_between_frames_of_a_variable_rate_are_kept() -> None:
    frames = sample_video(1, (32, 32), 4, 1.0).frames
    metadata = describe_video(Video(frames, (0.0, 0.5, 0.77, 3.0), 4.0, 2.0, 8))
    assert metadata.timestamps == [0.0, 0.5, 0.77, 3.0]
    assert list(metadata.frames_indices or ())[:2] == [0, 1]
    assert metadata.sampled_fps == 1.0


def test_settings_that_are_not_supported_are_errors() -> None:
    for settings in ({"resample": 0}, {"do_resize": False}, {"patch_size": "x"}):
        with pytest.raises(ConfigError, match="Qwen2VLVideoProcessor are not supported"):
            FrameProcessor("Qwen2VLVideoProcessor", settings)
    with pytest.raises(VideoError, match="at most"):
        FrameProcessor("Qwen2VLVideoProcessor", {}).frame_size(2, 1, 300)


def test_the_sampling_of_a_checkpoint_is_that_of_its_settings() -> None:
    processor = FrameProcessor("Qwen3VLVideoProcessor", {"fps": 1.5, "max_frames": 20})
    assert processor.sampling == VideoSampling(
        fps=1.5, min_frames=4, max_frames=20, position="ends"
    )


@pytest.mark.slow
def test_settings_of_videos_that_are_not_supported_leave_images_alone(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    write_checkpoint(directory, "qwen2_vl")
    settings = directory / "video_preprocessor_config.json"
    settings.write_text('{"resample": 0}')
    model = vlcore.load_vision_model(directory)
    assert isinstance(model.preprocess(OTHER), vlcore.ImageInputs)
    with pytest.raises(VideoError, match="takes no videos: the settings of Qwen2VLVideoProcessor"):
        model.preprocess_frames(CLIP)


@pytest.mark.slow
def test_other_families_take_no_videos(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", "llava")
    assert not vlcore.load_vision_model(tmp_path / "model", plugin=PLUGIN).takes_video
