"""Conversations in which a plugin is compared with another implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from vlcore.media.video import Video
from vlcore.prompts.tokenization import TokenizedPrompt
from vlcore.testing.samples import sample_image, sample_video

Messages = Sequence[Mapping[str, Any]]

IMAGE_SIZES = ((200, 60), (50, 110), (64, 64), (37, 23))
"""Width and height of the images, in pixels: wide, tall, square and small."""


def sample_conversations() -> dict[str, list[dict[str, Any]]]:
    """Return conversations without images, with several, and of several turns, by their names.

    They are OpenAI-style messages, and also those of transformers' chat templates: images are PIL
    images, under ``image`` of a part.
    """
    wide, tall, square, small = (sample_image(size) for size in IMAGE_SIZES)
    singles = {
        f"one image of {image.width} x {image.height} pixels": [_user(image, "What is this?")]
        for image in (wide, tall, square, small)
    }
    return {
        "no image": [_user("What is a lighthouse?\n\nAnswer in one line.")],
        **singles,
        "two images before the text": [_user(wide, tall, "Compare these: Zoë's and a 漢字.")],
        "images between texts": [_user("Is this", tall, "or that", small, "the older one?")],
        "images in two turns": [
            _user(square, "What is this?"),
            _message("assistant", "A dog."),
            _user("And this?", wide),
        ],
        "a system message": [_message("system", "Be brief."), _user(small, "What is this?")],
    }


def sample_video_conversations() -> dict[str, list[dict[str, Any]]]:
    """Return conversations with videos, under ``video`` of a part, by their names.

    All videos have the same number of frames, as some processors of transformers need. They were
    sampled: the numbers of the frames and their times are not those of a video that was not. In one
    of them, nothing moves from the first frame to the second.
    """
    moving, still = _sampled_video((64, 48)), _sampled_video((48, 80), seed=3)
    still = replace(still, frames=(still.frames[0], *still.frames[:-1]))
    return {
        "one video": [_user(moving, "What happens?")],
        "a video, an image and a video": [
            _user(moving, sample_image((64, 64)), "Is the image in it, or in", still, "?")
        ],
        "videos in two turns": [
            _user(still, "What happens?"),
            _message("assistant", "A dog runs."),
            _user("And here?", moving),
        ],
    }


def _sampled_video(size: tuple[int, int], seed: int = 0) -> Video:
    """Draw 6 of 60 frames at 23.976 frames a second.

    The number of a frame cannot be computed from its time without rounding.
    """
    frames = sample_video(size, 6, seed).frames
    indices, fps = (0, 12, 23, 29, 46, 58), 23.976
    times = tuple(index / fps for index in indices)
    return Video(frames, times, 60 / fps, fps, 60)


def images_of(messages: Messages) -> list[Image.Image]:
    """Return the images of a conversation, in order."""
    return [part["image"] for part in _parts(messages) if part["type"] == "image"]


def videos_of(messages: Messages) -> list[Video]:
    """Return the videos of a conversation, in order."""
    return [part["video"] for part in _parts(messages) if part["type"] == "video"]


def _parts(messages: Messages) -> list[Mapping[str, Any]]:
    return [
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    ]


def ids_with_embeddings(prompt: TokenizedPrompt, row_id: int) -> list[int]:
    """Return the ids of a prompt, with ``row_id`` for each embedding of an image or video."""
    ids = list(prompt.token_ids)
    for span in prompt.spans:
        ids[span.start : span.stop] = [row_id] * (span.stop - span.start)
    return ids


def first_difference(actual: Sequence[int], expected: Sequence[int]) -> int:
    """Return the first position at which two sequences differ."""
    pairs = zip(actual, expected, strict=False)
    shorter = min(len(actual), len(expected))
    return next((i for i, (ours, other) in enumerate(pairs) if ours != other), shorter)


def _user(*parts: str | Image.Image | Video) -> dict[str, Any]:
    return _message("user", *parts)


def _message(role: str, *parts: str | Image.Image | Video) -> dict[str, Any]:
    return {"role": role, "content": [_part(part) for part in parts]}


def _part(part: str | Image.Image | Video) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = "video" if isinstance(part, Video) else "image"
    return {"type": kind, kind: part}
