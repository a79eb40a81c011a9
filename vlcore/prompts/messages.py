"""Messages of a conversation, and the parts of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ROLES = ("system", "user", "assistant", "tool")


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
    """The position of one image or video in a message or a prompt."""

    index: int
    """Index of the image or video in the request, from 0. Both are numbered together."""
    kind: Literal["image", "video"] = "image"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of the image or video, such as ``{"detail": "low"}`` or ``{"fps": 1}``."""

    @property
    def is_video(self) -> bool:
        """Whether this is the position of a video."""
        return self.kind == "video"


@dataclass(frozen=True)
class Rows:
    """Consecutive embeddings of an image or a video, in the expansion of its slot."""

    num_rows: int


PromptPart = Text | Control | ImageSlot


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool in a message of the assistant."""

    name: str
    arguments: str
    """The arguments, as JSON."""
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One message of a conversation: texts, and slots of images and videos, in their order."""

    role: str
    content: tuple[Text | ImageSlot, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls of tools in a message of the assistant."""
    tool_call_id: str = ""
    """The call whose result a message of the role ``tool`` has."""

    @property
    def text(self) -> str:
        """The texts of the message, joined by line breaks."""
        return "\n".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def slots(self) -> tuple[ImageSlot, ...]:
        """The slots of the message's images and videos."""
        return tuple(part for part in self.content if isinstance(part, ImageSlot))
