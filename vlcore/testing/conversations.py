"""Conversations in which a plugin is compared with another implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from vlcore.prompts.tokenization import TokenizedPrompt
from vlcore.testing.samples import sample_image

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


def images_of(messages: Messages) -> list[Image.Image]:
    """Return the images of a conversation, in order."""
    parts = [
        part
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
    ]
    return [part["image"] for part in parts if part["type"] == "image"]


def ids_with_embeddings(prompt: TokenizedPrompt, row_id: int) -> list[int]:
    """Return the ids of a prompt, with ``row_id`` instead of each image embedding."""
    ids = list(prompt.token_ids)
    for span in prompt.spans:
        ids[span.start : span.stop] = [row_id] * (span.stop - span.start)
    return ids


def first_difference(actual: Sequence[int], expected: Sequence[int]) -> int:
    """Return the first position at which two sequences differ."""
    pairs = zip(actual, expected, strict=False)
    shorter = min(len(actual), len(expected))
    return next((i for i, (ours, other) in enumerate(pairs) if ours != other), shorter)


def _user(*parts: str | Image.Image) -> dict[str, Any]:
    return _message("user", *parts)


def _message(role: str, *parts: str | Image.Image) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": role, "content": content}
