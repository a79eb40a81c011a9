"""The checks of models that take videos, with one fault at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlcore import ChatTemplate, ImageInputs, ImageRows, ImageSlot, Rows, Text, Video, VisionModel
from vlcore.prompts.conversation import read_conversation
from vlcore.testing import Check, Outcome
from vlcore.testing.checks import videos
from vlcore.vision.model import ImageRows as EncodedRows

CHECKS = (videos.video_rows, videos.video_batch, videos.video_frames, videos.video_prompt)


class FrameModel(VisionModel):
    """Returns one embedding for each frame and image: the mean of its pixels, and its number."""

    hidden_size = 2
    dtype = torch.float32

    def preprocess(self, image: Any, **_: Any) -> ImageInputs:
        return self._inputs([image])

    def preprocess_frames(self, video: Video, **_: Any) -> ImageInputs:
        return self._inputs(video.frames)

    def _inputs(self, images: Sequence[Any]) -> ImageInputs:
        small = [image.convert("L").resize((4, 4)) for image in images]
        greys = [float(sum(image.tobytes())) for image in small]
        return ImageInputs(torch.tensor(greys), num_rows=len(greys))

    def forward(self, inputs: Sequence[ImageInputs]) -> list[ImageRows]:
        return [
            EncodedRows(torch.stack([each.pixels, torch.arange(len(each.pixels)).float()], dim=1))
            for each in inputs
        ]


class SamplesAgain(FrameModel):
    def preprocess_frames(self, video: Video, **_: Any) -> ImageInputs:
        return self._inputs(video.frames[::2])


class ForgetsOrder(FrameModel):
    def preprocess_frames(self, video: Video, **_: Any) -> ImageInputs:
        inputs = self._inputs(video.frames)
        return replace(inputs, pixels=inputs.pixels.mean().expand(len(inputs.pixels)))


class CountsWrongly(FrameModel):
    def preprocess_frames(self, video: Video, **_: Any) -> ImageInputs:
        return replace(self._inputs(video.frames), num_rows=len(video.frames) + 1)


class Mixes(FrameModel):
    def forward(self, inputs: Sequence[ImageInputs]) -> list[ImageRows]:
        rows = super().forward(inputs)
        return [EncodedRows(image.rows + len(inputs) - 1) for image in rows]


class Swaps(FrameModel):
    def forward(self, inputs: Sequence[ImageInputs]) -> list[ImageRows]:
        return super().forward(inputs)[::-1]


class Template(ChatTemplate):
    def messages2prompt(self, messages: Any) -> Any:
        (message,) = read_conversation(messages)
        return message.content


class DropsVideos(Template):
    def messages2prompt(self, messages: Any) -> Any:
        parts = super().messages2prompt(messages)
        return tuple(p for p in parts if isinstance(p, Text) or not p.is_video)


class MakesImages(Template):
    def messages2prompt(self, messages: Any) -> Any:
        return tuple(
            ImageSlot(part.index) if isinstance(part, ImageSlot) else part
            for part in super().messages2prompt(messages)
        )


class WritesTooManyRows(Template):
    def expand(self, layout: Any, num_rows: int) -> Any:
        return (Rows(num_rows), Rows(1))


def failing(model: VisionModel, template: ChatTemplate) -> set[str]:
    subject: Any = SimpleNamespace(
        vision_model=model, template=template, device=torch.device("cpu"), tolerance=1e-4
    )
    results = [check.run(subject, None) for check in CHECKS]
    return {result.name for result in results if result.outcome is Outcome.FAILED}


@pytest.mark.parametrize(
    ("model", "template", "expected"),
    [
        (FrameModel, Template, set()),
        (SamplesAgain, Template, {"video-frames"}),
        (ForgetsOrder, Template, {"video-frames"}),
        (CountsWrongly, Template, {"video-rows"}),
        (Mixes, Template, {"video-batch"}),
        (Swaps, Template, {"video-batch"}),
        (FrameModel, DropsVideos, {"video-prompt"}),
        (FrameModel, MakesImages, {"video-prompt"}),
        (FrameModel, WritesTooManyRows, {"video-prompt"}),
    ],
)
def test_each_fault_is_found_by_its_check(
    model: type[VisionModel], template: type[ChatTemplate], expected: set[str]
) -> None:
    assert failing(model(), template()) == expected


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_model_that_takes_no_videos_is_not_checked(check: Check) -> None:
    class ImagesOnly(VisionModel):
        hidden_size = 2

    subject: Any = SimpleNamespace(vision_model=ImagesOnly(), template=Template())
    assert check.run(subject, None).outcome is Outcome.DOES_NOT_APPLY
