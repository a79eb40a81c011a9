"""``parse_prompt``: reads any form of a prompt as a ``Conversation``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlcore.errors import PromptError
from vlcore.media.source import describe
from vlcore.prompts.conversation import Conversation, read_conversation
from vlcore.prompts.messages import ImageSlot, Message, Text

_URL_SCHEMES = ("http://", "https://", "data:", "file:")

Prompt = str | tuple[Any, Any] | Sequence[Mapping[str, Any]] | Conversation
"""A text, a pair ``(text, image or images)`` in either order, OpenAI-style messages, or a
conversation that was read before."""


def is_batch(prompts: Any) -> bool:
    """Whether this is a list of prompts rather than one prompt."""
    return isinstance(prompts, list) and not (
        prompts and all(isinstance(item, Mapping) for item in prompts)
    )


def parse_prompt(prompt: Any) -> Conversation:
    """Read one prompt; a :class:`Conversation` is returned unchanged.

    Raises:
        PromptError: The prompt is not a :data:`Prompt`, or its messages are invalid.
    """
    if isinstance(prompt, Conversation):
        return prompt
    if isinstance(prompt, str):
        return Conversation((Message("user", (Text(prompt),)),))
    if isinstance(prompt, tuple):
        return _parse_pair(prompt)
    if isinstance(prompt, Sequence):
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if len(messages) == len(prompt):
            conversation = read_conversation(messages)
            _check_images(conversation)
            return conversation
    raise PromptError(
        "a prompt must be a text, a pair (text, image or list of images) or a list of OpenAI-style "
        f"messages; this one is {describe(prompt)} ({type(prompt).__name__})"
    )


def _parse_pair(pair: tuple[Any, ...]) -> Conversation:
    if len(pair) != 2:
        raise PromptError(
            f"a pair (text, image or list of images) must have 2 items; it has {len(pair)} items"
        )
    text, images = pair if _is_text_first(*pair) else (pair[1], pair[0])
    if not isinstance(text, str):
        raise PromptError(
            f"one item of a pair must be the text; they are {type(pair[0]).__name__} and "
            f"{type(pair[1]).__name__}"
        )
    images = tuple(images) if isinstance(images, list | tuple) else (images,)
    slots = tuple(ImageSlot(index) for index in range(len(images)))
    return Conversation((Message("user", (*slots, Text(text))),), images)


def _is_text_first(first: Any, second: Any) -> bool:
    if not isinstance(first, str):
        return False
    return not isinstance(second, str) or _looks_like_image(second) or not _looks_like_image(first)


def _looks_like_image(text: str) -> bool:
    if text.startswith(_URL_SCHEMES):
        return True
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # it is too long or not a path
        return False


def _check_images(conversation: Conversation) -> None:
    """Check that every slot has an image.

    Raises:
        PromptError: A slot has no image, or an object that is not one.
    """
    for position, message in enumerate(conversation.messages):
        for slot in message.slots:
            image = conversation.images[slot.index]
            if not isinstance(image, str | Image.Image | Path | bytes | bytearray | memoryview):
                raise PromptError(
                    f"the image part in message {position} has no image: expected "
                    '{"type": "image_url", "image_url": {"url": …}} with a URL or a path, or '
                    '{"type": "image", "image": …} with a PIL image'
                )
