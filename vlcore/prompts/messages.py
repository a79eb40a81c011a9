"""Messages of a conversation, and the parts of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from vlcore.errors import PromptError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Text:
    """Text of a message. It never becomes a special token."""

    text: str


@dataclass(frozen=True)
class Control:
    """Text of the chat template, in which special tokens are recognized."""

    text: str


@dataclass(frozen=True)
class ImageSlot:
    """The position of one image in a message or a prompt."""

    index: int
    """Index of the image in the request, from 0."""
    kind: str = "image"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of the image, such as ``{"detail": "low"}``."""


@dataclass(frozen=True)
class Rows:
    """Consecutive embeddings of an image, in the expansion of its slot."""

    num_rows: int


PromptPart = Text | Control | ImageSlot


@dataclass(frozen=True)
class Message:
    """One message of a conversation: texts and image slots in their order."""

    role: str
    content: tuple[Text | ImageSlot, ...]

    @property
    def text(self) -> str:
        """The texts of the message, joined by line breaks."""
        return "\n".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def slots(self) -> tuple[ImageSlot, ...]:
        """The image slots of the message."""
        return tuple(part for part in self.content if isinstance(part, ImageSlot))


@dataclass(frozen=True)
class Conversation(Sequence[Message]):
    """The messages of a conversation, read and checked, and the images of their slots.

    As a sequence of messages, it is a valid argument of :meth:`ChatTemplate.messages2prompt`.

    Raises:
        PromptError: There are no messages, a message has an unknown role, a system message is not
            the first message, or a message of another role than the user has an image.
    """

    messages: tuple[Message, ...]
    images: tuple[Any, ...] = ()
    """Source of the image of each slot, by :attr:`ImageSlot.index`; ``None`` for no image."""

    def __post_init__(self) -> None:
        if not self.messages:
            raise PromptError("a conversation needs at least one message")
        for position, message in enumerate(self.messages):
            if message.role not in ROLES:
                raise PromptError(
                    f"message {position} has role {message.role!r}; expected one of "
                    f"{', '.join(ROLES)}"
                )
            if message.role == "system" and position > 0:
                raise PromptError(
                    f"message {position} is a system message: only the first message may be one"
                )
            if message.role != "user" and message.slots:
                raise PromptError(
                    f"message {position} ({message.role}) has an image: only user messages may "
                    "have one"
                )

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Message, ...]: ...
    def __getitem__(self, index: int | slice) -> Message | tuple[Message, ...]:
        return self.messages[index]

    def __len__(self) -> int:
        return len(self.messages)

    def __add__(self, other: Conversation) -> Conversation:
        """Append the messages and images of another conversation."""
        appended = tuple(_shift_slots(message, len(self.images)) for message in other.messages)
        return Conversation(self.messages + appended, self.images + other.images)

    @property
    def image_options(self) -> list[Mapping[str, Any]]:
        """The options of each image."""
        return [slot.options for message in self.messages for slot in message.slots]


def read_conversation(messages: Sequence[Message | Mapping[str, Any]]) -> Conversation:
    """Read OpenAI-style messages, see :func:`parse_messages`, with the images of their parts.

    A :class:`Conversation` is returned unchanged.

    Raises:
        PromptError: The messages are invalid, or the last one is not a message of the user.
    """
    if isinstance(messages, Conversation):
        return messages
    images: list[Any] = []
    parsed = []
    for position, message in enumerate(messages):
        if isinstance(message, Message):
            images += [None] * len(message.slots)
            parsed.append(message)
        else:
            parsed.append(_read_message(message, position, images))
    conversation = Conversation(tuple(parsed), tuple(images))
    if parsed[-1].role != "user":
        raise PromptError(
            "the last message of a conversation must be one of the user; this one ends with a "
            f"message of the {parsed[-1].role}"
        )
    return conversation


def parse_messages(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Read OpenAI-style messages; :class:`Message` values pass through.

    ``content`` is a string or a list of parts: ``{"type": "text", "text": …}``,
    ``{"type": "image_url", "image_url": …}`` or ``{"type": "image", …}``. Image parts become
    slots that are numbered from 0 over the whole conversation. The image itself is optional.

    Raises:
        PromptError: The conversation is empty, does not end with a message of the user, has an
            unknown role or part, or has a system message after the first message.
    """
    return read_conversation(messages).messages


def _read_message(message: object, position: int, images: list[Any]) -> Message:
    """Read one message, and append the images of its parts to ``images``."""
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
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(Text(part["text"]))
        elif kind in ("image", "image_url"):
            parts.append(ImageSlot(len(images), options=_image_options(part)))
            image = part.get("image_url", part.get("image"))
            images.append(image.get("url") if isinstance(image, Mapping) else image)
        else:
            raise PromptError(
                f"message {position} has an invalid part of type {kind!r}: expected "
                '{"type": "text", "text": …}, {"type": "image_url", "image_url": {"url": …}} or '
                '{"type": "image", "image": …}'
            )
    return Message(role, tuple(parts))


def _image_options(part: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in part.items() if key not in ("type", "image_url")}
    options.pop("image", None)
    if isinstance(image_url := part.get("image_url"), Mapping):
        options |= {key: value for key, value in image_url.items() if key != "url"}
    if options.get("detail") == "auto":  # the default of OpenAI's clients
        del options["detail"]
    return options


def _shift_slots(message: Message, num_images: int) -> Message:
    content = tuple(
        replace(part, index=part.index + num_images) if isinstance(part, ImageSlot) else part
        for part in message.content
    )
    return replace(message, content=content)
