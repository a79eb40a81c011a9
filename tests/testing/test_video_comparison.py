"""A plugin that takes videos is compared with transformers, as it is and with a fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers_families.checkpoints import TinyCheckpoint, write_checkpoint
from vl_plugin_transformers.processor import FamilyProcessor

from vlcore import Video
from vlcore.testing import Outcome, Report, compare_with_transformers

NAME = "vl-plugin-transformers"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    return write_checkpoint(tmp_path_factory.mktemp("videos") / "model", "qwen2_5_vl")


def compare(checkpoint: TinyCheckpoint) -> Report:
    return compare_with_transformers(
        checkpoint.directory, plugin=NAME, processor=checkpoint.processor, num_tokens=4
    )


def failed(report: Report) -> set[str]:
    return {result.name.removeprefix("transformers-") for result in report.of(Outcome.FAILED)}


def test_a_right_plugin_passes(checkpoint: TinyCheckpoint) -> None:
    report = compare(checkpoint)
    assert report.ok, str(report)
    assert "transformers-videos" in {result.name for result in report.of(Outcome.PASSED)}


def test_frames_without_their_times_are_found(
    checkpoint: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FamilyProcessor.video

    def without_times(self: FamilyProcessor, video: Video) -> Any:
        tensors, layout = read(self, video)
        return tensors, replace(layout, time_step=9.0)

    monkeypatch.setattr(FamilyProcessor, "video", without_times)
    assert "logits" in failed(compare(checkpoint))


def test_frames_in_another_order_are_found(
    checkpoint: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FamilyProcessor.video

    def backwards(self: FamilyProcessor, video: Video) -> Any:
        return read(self, replace(video, frames=video.frames[::-1]))

    monkeypatch.setattr(FamilyProcessor, "video", backwards)
    assert {"videos", "logits"} <= failed(compare(checkpoint))


def test_a_processor_without_videos_is_reported(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", "qwen2_vl")
    checkpoint.processor.video_processor = None
    report = compare(checkpoint)
    results = report.of(Outcome.NOT_RUN)
    assert [result.name for result in results] == ["transformers-videos", "transformers-frames"]
    assert all("torchvision" in result.reason for result in results)
