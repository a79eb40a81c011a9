"""What people pass as a prompt, read as a conversation and its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlcore.errors import PromptError
from vlcore.media.source import ImageSource, describe
from vlcore.prompts.messages import ImageSlot, Message, Text, parse_messages

_URL_SCHEMES = ("http://", "https://", "data:", "file:")

Prompt = str | tuple[Any, Any] | Sequence[Mapping[str, Any]]
"""A text, ``(text, image or images)`` in either order, or OpenAI-style messages."""


@dataclass(frozen=True)
class Conversation:
    """Messages, and the pictures that their slots stand for."""

    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...] = ()

    @property
    def image_options(self) -> list[Mapping[str, Any]]:
        """The options of each picture."""
        slots = [part for message in self.messages for part in message.content]
        return [slot.options for slot in slots if isinstance(slot, ImageSlot)]

    def __add__(self, other: Conversation) -> Conversation:
        """Continue this conversation with another one's messages and pictures."""
        shifted = tuple(_shift(message, len(self.images)) for message in other.messages)
        return Conversation(self.messages + shifted, self.images + other.images)


def is_batch(prompts: Any) -> bool:
    """Whether this is a list of prompts rather than one prompt."""
    return isinstance(prompts, list) and not (
        prompts and all(isinstance(item, Mapping) for item in prompts)
    )


def parse_prompt(prompt: Any) -> Conversation:
    """Read one prompt.

    Raises:
        PromptError: it is none of the forms above.
    """
    if isinstance(prompt, str):
        return Conversation((Message("user", (Text(prompt),)),))
    if isinstance(prompt, tuple):
        return _parse_pair(prompt)
    if isinstance(prompt, Sequence):
        given = [item for item in prompt if isinstance(item, Mapping)]
        if len(given) == len(prompt):
            return Conversation(parse_messages(given), tuple(_pictures(given)))
    raise PromptError(
        "a prompt is a text, a pair (text, image or list of images), or a list of OpenAI-style "
        f"messages; this one is {describe(prompt)} ({type(prompt).__name__})"
    )


def _parse_pair(pair: tuple[Any, ...]) -> Conversation:
    if len(pair) != 2:
        raise PromptError(
            f"a pair (text, image or list of images) is expected; it has {len(pair)} items"
        )
    text, given = pair if _is_text_first(*pair) else (pair[1], pair[0])
    if not isinstance(text, str):
        raise PromptError(
            f"one of the pair must be the text; they are {type(pair[0]).__name__} and "
            f"{type(pair[1]).__name__}"
        )
    images = tuple(given) if isinstance(given, list | tuple) else (given,)
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
    except (OSError, ValueError, RuntimeError):  # too long or no path at all
        return False


def _pictures(messages: Sequence[Mapping[str, Any]]) -> list[ImageSource]:
    pictures: list[ImageSource] = []
    for position, message in enumerate(messages):
        content = message["content"]
        for part in content if isinstance(content, Sequence) else ():
            if not isinstance(part, Mapping) or part.get("type") not in ("image", "image_url"):
                continue
            picture = part.get("image_url", part.get("image"))
            if isinstance(picture, Mapping):
                picture = picture.get("url")
            if not isinstance(picture, str | Image.Image | Path | bytes | bytearray | memoryview):
                raise PromptError(
                    f"the image part in message {position} needs a picture: "
                    '{"type": "image_url", "image_url": {"url": …}} with a URL or a path, or '
                    '{"type": "image", "image": …} with a PIL image'
                )
            pictures.append(picture)  # type: ignore[arg-type]
    return pictures


def _shift(message: Message, num_images: int) -> Message:
    content = tuple(
        ImageSlot(part.index + num_images, part.kind, part.options)
        if isinstance(part, ImageSlot)
        else part
        for part in message.content
    )
    return Message(message.role, content)
