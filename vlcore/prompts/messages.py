"""Messages of a conversation, and the parts that prompts are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlcore.errors import PromptError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Text:
    """Text of a user, of an earlier answer, or of a system message."""

    text: str


@dataclass(frozen=True)
class Control:
    """Text of the template, in which special tokens count as such."""

    text: str


@dataclass(frozen=True)
class ImageSlot:
    """The place of one image."""

    index: int
    """Which of the request's images, from 0."""
    kind: str = "image"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Per-image options of the request, such as ``{"detail": "low"}``."""


@dataclass(frozen=True)
class Rows:
    """A run of an image's rows, in the expansion of a slot."""

    num_rows: int


PromptPart = Text | Control | ImageSlot


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: texts and image slots in the order they were written."""

    role: str
    content: tuple[Text | ImageSlot, ...]

    @property
    def text(self) -> str:
        """The message's texts, joined by line breaks."""
        return "\n".join(part.text for part in self.content if isinstance(part, Text))


def parse_messages(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Read OpenAI-style messages; :class:`Message` values pass through.

    ``content`` is a string or a list of parts: ``{"type": "text", "text": …}``,
    ``{"type": "image_url", "image_url": …}`` or ``{"type": "image", …}``. Image parts become
    slots numbered from 0 over the whole conversation; they may come without a picture.

    Raises:
        PromptError: the conversation is empty, does not end with the user, holds an unknown role
            or part, or a system message that is not the first.
    """
    if not messages:
        raise PromptError("a conversation needs at least one message")
    num_images = 0
    parsed = []
    for position, message in enumerate(messages):
        if not isinstance(message, Message):
            message = _parse_message(message, position, num_images)
        if message.role not in ROLES:
            raise PromptError(
                f"message {position} has role {message.role!r}; expected one of {', '.join(ROLES)}"
            )
        if message.role == "system" and position > 0:
            raise PromptError(
                f"message {position} is a system message: only the first message may be one"
            )
        slots = [part for part in message.content if isinstance(part, ImageSlot)]
        if slots and message.role != "user":
            raise PromptError(
                f"message {position} ({message.role}) holds an image: only user messages may"
            )
        num_images += len(slots)
        parsed.append(message)
    if parsed[-1].role != "user":
        raise PromptError(
            f"a conversation ends with a message of the user; this one ends with {parsed[-1].role}"
        )
    return tuple(parsed)


def _parse_message(message: object, position: int, first_image: int) -> Message:
    if not isinstance(message, Mapping):
        raise PromptError(
            f"message {position} must be a mapping with role and content, "
            f"not {type(message).__name__}"
        )
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise PromptError(f"message {position} needs a role: one of {', '.join(ROLES)}")
    if isinstance(content, str):
        return Message(role, (Text(content),))
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(
            f"message {position} needs content: a string or a list of parts, "
            f"not {type(content).__name__}"
        )
    parts: list[Text | ImageSlot] = []
    num_slots = 0
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(Text(part["text"]))
        elif kind in ("image", "image_url"):
            parts.append(ImageSlot(first_image + num_slots, options=_image_options(part)))
            num_slots += 1
        else:
            raise PromptError(
                f"message {position} holds a part of type {kind!r} that cannot be read: expected "
                '{"type": "text", "text": …}, {"type": "image_url", "image_url": {"url": …}} or '
                '{"type": "image", "image": …}'
            )
    return Message(role, tuple(parts))


def _image_options(part: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in part.items() if key not in ("type", "image_url")}
    options.pop("image", None)
    if isinstance(image_url := part.get("image_url"), Mapping):
        options |= {key: value for key, value in image_url.items() if key != "url"}
    if options.get("detail") == "auto":  # what OpenAI's clients send for "as you like"
        del options["detail"]
    return options
