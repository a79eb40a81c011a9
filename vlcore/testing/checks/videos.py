"""Checks of a vision model that takes videos: frames in, embeddings out."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import ImageOps

from vlcore.media.video import Video
from vlcore.prompts.chat_template import expand_slot
from vlcore.prompts.messages import ImageSlot, Rows
from vlcore.testing.check import check
from vlcore.testing.checks.images import describe_difference, relative_difference
from vlcore.testing.report import DoesNotApplyError, fail
from vlcore.testing.samples import forward, sample_image, sample_video
from vlcore.testing.subject import Subject
from vlcore.vision.model import ImageInputs, ImageRows, VisionModel

_SIZES = ((64, 48), (48, 80))


@check("video-rows", "videos give the stated number of finite rows [k, row_width], twice the same")
def video_rows(subject: Subject) -> None:
    """Encode videos of several sizes, and of an even and an odd number of frames."""
    model = _model(subject)
    for number, size in enumerate(_SIZES):
        video = sample_video(size, 4 + number)
        inputs = model.preprocess_frames(video)
        (found,), (again,) = forward(model, [inputs]), forward(model, [inputs])
        rows = found.rows
        stated = inputs.num_rows if isinstance(inputs, ImageInputs) else None
        shape = [len(rows) if stated is None else stated, model.row_width]
        if rows.ndim != 2 or not len(rows) or list(rows.shape) != shape:
            _fail(model, f"rows {shape}, at least one", f"a tensor {list(rows.shape)}", video)
        if not torch.isfinite(rows).all():
            _fail(model, "finite values", "values that are NaN or Inf", video)
        if (difference := relative_difference(again.rows, rows)) > _exact(subject):
            actual = describe_difference(again.rows, rows, difference)
            _fail(model, "the embeddings of the first time", actual, video)


@check("video-batch", "videos and images give the same rows together as one by one")
def video_batch(subject: Subject) -> None:
    """Encode two videos with an image in between."""
    model = _model(subject)
    inputs = [
        model.preprocess_frames(sample_video(_SIZES[0], 4)),
        model.preprocess(sample_image((33, 97))),
        model.preprocess_frames(sample_video(_SIZES[1], 2)),
    ]
    for position, (together, each) in enumerate(
        zip(forward(model, inputs), inputs, strict=True), 1
    ):
        (alone,) = forward(model, [each])
        difference = relative_difference(together.rows, alone.rows)
        if difference > subject.tolerance:
            fail(
                expected=f"the rows it gives alone, to {subject.tolerance:g} of the largest",
                actual=describe_difference(together.rows, alone.rows, difference),
                where=f"{type(model).__name__}.forward, item {position} of a video, an image and a "
                "video",
                advice="return results in the order of the inputs; videos and images must not "
                "affect each other",
            )


@check("video-frames", "every frame of a video that preprocess_frames receives is used, in order")
def video_frames(subject: Subject) -> None:
    """Change each frame, and the order of the frames: a processor must not sample again."""
    model = _model(subject)
    video = sample_video(_SIZES[0], 6)
    usual = _encode(model, video)
    for index, frame in enumerate(video.frames):
        frames = (*video.frames[:index], ImageOps.invert(frame), *video.frames[index + 1 :])
        if relative_difference(_encode(model, replace(video, frames=frames)).rows, usual.rows) == 0:
            fail(
                expected="other rows than those of the video before",
                actual="the same",
                where=f"{type(model).__name__}.preprocess_frames, frame {index + 1} of 6 inverted",
                advice="use every frame: vlcore has sampled them; switch off the sampling of a "
                "processor (do_sample_frames=False in transformers)",
            )
    backwards = replace(video, frames=video.frames[::-1])
    if relative_difference(_encode(model, backwards).rows, usual.rows) == 0:
        _fail(model, "other rows for the frames in reverse order", "the same", video)


@check("video-prompt", "the chat template has a slot for a video, and places all of its rows")
def video_prompt(subject: Subject) -> None:
    """Write a conversation with two videos and an image, and expand the slots."""
    model, template = _model(subject), subject.template
    kinds = ("video", "image", "video")
    content = [{"type": kind} for kind in kinds]
    parts = template.messages2prompt(
        [{"role": "user", "content": [*content, {"type": "text", "text": "Compare them."}]}]
    )
    slots = [part for part in parts if isinstance(part, ImageSlot)]
    actual = [(slot.index, slot.kind) for slot in slots]
    if actual != (expected := list(enumerate(kinds))):
        fail(
            expected=f"the slots {expected}",
            actual=f"the slots {actual}",
            where=f"messages2prompt of {type(template).__name__}",
            advice="pass on every ImageSlot of the messages, once; JinjaTemplate needs video_token",
        )
    found = _encode(model, sample_video(_SIZES[0], 4))
    expansion = expand_slot(template, slots[0], found.layout, len(found.rows))
    placed = sum(part.num_rows for part in expansion if isinstance(part, Rows))
    if placed != len(found.rows):
        fail(
            expected=f"runs of rows that sum to {len(found.rows)}",
            actual=f"{placed} rows",
            where=f"expand of {type(template).__name__}, a video of 4 frames",
            advice="let the Rows of an expansion sum to num_rows",
        )


def _model(subject: Subject) -> VisionModel:
    """Return the vision model.

    Raises:
        DoesNotApplyError: it takes no videos.
    """
    if not subject.vision_model.takes_video:
        raise DoesNotApplyError("the vision model takes no videos")
    return subject.vision_model


def _encode(model: VisionModel, video: Video) -> ImageRows:
    return forward(model, [model.preprocess_frames(video)])[0]


def _exact(subject: Subject) -> float:
    return 0 if subject.device.type == "cpu" else subject.tolerance


def _fail(model: VisionModel, expected: str, actual: str, video: Video) -> None:
    fail(
        expected=expected,
        actual=actual,
        where="{}, a video of {} frames of {} x {} pixels".format(
            type(model).__name__, len(video.frames), *video.size
        ),
        advice="compare num_rows of preprocess_frames with what forward returns, and call eval()",
    )
