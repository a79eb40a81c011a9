"""``Conversation``: the messages of a conversation, as they are read from user input."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

from vlcore.errors import PromptError
from vlcore.prompts.messages import ROLES, ImageSlot, Message, Text, ToolCall

_TEXT_TYPES = ("text", "input_text", "output_text")
_URL_SPACE = "".join(map(chr, range(0x21))) + "\ufeff"
_URL = re.compile(rf"[{re.escape(_URL_SPACE)}]*(data|https?|file):", re.IGNORECASE)
_IMAGE_TYPES = ("image", "image_url", "input_image")
_VIDEO_TYPES = ("video", "video_url", "input_video")
_SOURCE_KEYS: Mapping[str, tuple[str, ...]] = {
    "image": ("image_url", "image", "url", "path"),
    "video": ("video_url", "video", "url", "path"),
}
"""Keys of a part that may have the image or the video, in the order in which they are looked up."""
_IGNORED_KEYS = frozenset(
    {
        *("type", "text", "cache_control", "id", "uuid", "index", "name", "filename", "metadata"),
        *("mime_type", "media_type", "format", "annotations", "alt", "alt_text", "title"),
    }
)
"""Keys of a part that are not options of its image or video."""
_UNSUPPORTED_KEYS = ("function_call",)
"""Keys of a message that may only be empty."""


@dataclass(frozen=True)
class Conversation(Sequence[Message]):
    """The messages of a conversation, read and checked, with their images and videos.

    Consecutive messages of the same role are joined: the messages of user and assistant alternate,
    after at most one system message. As a sequence of messages, a conversation is a valid argument
    of :meth:`ChatTemplate.messages2prompt`.

    Raises:
        PromptError: There are no messages of the user or the assistant, a message has an unknown
            role, a system message comes after another message, a message of another role than the
            user has an image or a video, or there is no last message to continue.
    """

    messages: tuple[Message, ...]
    images: tuple[Any, ...] = ()
    """Source of the image or video of each slot, by :attr:`ImageSlot.index`; ``None`` for none."""
    continue_final_message: bool | None = None
    """Whether the response continues the last message, which must be one of the assistant.
    ``None`` to continue it if it is one of the assistant."""
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """The tools that the model may call, as OpenAI describes them."""

    def __post_init__(self) -> None:
        messages = _join_messages(self.messages)
        object.__setattr__(self, "messages", messages)
        if not messages:
            raise PromptError("a conversation needs at least one message")
        last_role = messages[-1].role
        if last_role == "system":
            raise PromptError("a conversation needs a message of the user after the system message")
        if messages[-1].tool_calls:
            raise PromptError(
                "the last message of the conversation calls tools: append their results, as "
                "messages of the role 'tool'"
            )
        if self.continue_final_message and last_role != "assistant":
            raise PromptError(
                "continue_final_message needs a last message of the assistant; the last message of "
                f"this conversation is one of the {last_role}"
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
        return Conversation(
            self.messages + appended,
            self.images + other.images,
            other.continue_final_message,
            other.tools or self.tools,
        )

    def with_response(self, text: str) -> Conversation:
        """Append the model's response, which may be the continuation of the last message."""
        messages = self.messages
        if self.continues_final_message:
            text = messages[-1].text + text
            messages = messages[:-1]
        response = Message("assistant", (Text(text),))
        return Conversation((*messages, response), self.images, tools=self.tools)

    @property
    def continues_final_message(self) -> bool:
        """Whether the response continues the last message, which is one of the assistant.

        The prompt then ends with the text of that message. If the text is empty, the prompt is the
        one for a new response.
        """
        return self.messages[-1].role == "assistant" and self.continue_final_message is not False

    @property
    def uses_tools(self) -> bool:
        """Whether there are tools, calls of tools or results of them."""
        return bool(self.tools) or any(
            message.tool_calls or message.role == "tool" for message in self.messages
        )

    @property
    def image_options(self) -> list[Mapping[str, Any]]:
        """The options of each image and video."""
        return [slot.options for slot in self.slots]

    @property
    def slots(self) -> tuple[ImageSlot, ...]:
        """The slots of all images and videos, in order."""
        return tuple(slot for message in self.messages for slot in message.slots)


def read_conversation(messages: Sequence[Message | Mapping[str, Any]]) -> Conversation:
    """Read OpenAI-style messages, see :func:`parse_messages`, with the images of their parts.

    A :class:`Conversation` is returned unchanged.

    Raises:
        PromptError: The messages are invalid.
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
    return Conversation(tuple(parsed), tuple(images))


def parse_messages(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """Read OpenAI-style messages; :class:`Message` values pass through.

    ``content`` is a string or a list of parts: ``{"type": "text", "text": …}``,
    ``{"type": "image_url", "image_url": …}``, ``{"type": "image", …}``,
    ``{"type": "video_url", "video_url": …}`` or ``{"type": "video", …}``. Parts of images and
    videos become slots that are numbered from 0 over the whole conversation. The image or video
    itself is optional. In a message of the assistant, ``content`` may be ``None`` or missing.
    ``developer`` is another name of the role ``system``.

    Consecutive messages of the same role are joined, by a line break between their texts. If the
    last message is one of the assistant, the response continues it.

    Raises:
        PromptError: The conversation has no message of the user or the assistant, has an unknown
            role or part, an invalid call of a tool, or a system message after another message.
    """
    return read_conversation(messages).messages


def _join_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Check messages, and join consecutive messages of the same role."""
    joined: list[Message] = []
    for position, message in enumerate(messages):
        if message.role not in ROLES:
            raise PromptError(
                f"message {position} has role {message.role!r}; expected one of {', '.join(ROLES)}"
            )
        if message.role != "user" and message.slots:
            raise PromptError(
                f"message {position} ({message.role}) has {_with_article(message.slots[0].kind)}: "
                "only user messages may have one"
            )
        follows_call = bool(joined) and _concerns_tools(joined[-1])
        if message.role == "tool" and not follows_call:
            raise PromptError(
                f"message {position} is the result of a tool: it must follow a message of the "
                "assistant with tool_calls"
            )
        if joined and message.role == joined[-1].role and not _concerns_tools(message, joined[-1]):
            joined[-1] = _join_contents(joined[-1], message)
        elif joined and message.role == "system":
            raise PromptError(
                f"message {position} is a system message: system messages must come before all "
                "other messages"
            )
        else:
            joined.append(message)
    return tuple(joined)


def _concerns_tools(*messages: Message) -> bool:
    return any(message.tool_calls or message.role == "tool" for message in messages)


def _join_contents(first: Message, second: Message) -> Message:
    """Append the content of a message, by a line break if both texts are adjacent."""
    if first.content and second.content:
        last, following = first.content[-1], second.content[0]
        if isinstance(last, Text) and isinstance(following, Text):
            text = "\n".join(part.text for part in (last, following) if part.text)
            content = (*first.content[:-1], Text(text), *second.content[1:])
            return replace(first, content=content)
    return replace(first, content=(*first.content, *second.content))


def _read_message(message: object, position: int, images: list[Any]) -> Message:
    """Read one message, and append the images and videos of its parts to ``images``."""
    if not isinstance(message, Mapping):
        raise PromptError(
            f"message {position} must be a mapping with role and content, "
            f"not {type(message).__name__}"
        )
    role = message.get("role")
    if not isinstance(role, str):
        raise PromptError(f"message {position} needs a role: one of {', '.join(ROLES)}")
    for key in _UNSUPPORTED_KEYS:
        if message.get(key):
            raise PromptError(f"message {position} has {key}, which is not supported: remove it")
    content = _read_content(role, message.get("content"), position, images)
    tool_calls = tuple(_read_tool_call(call, position) for call in message.get("tool_calls") or ())
    if tool_calls and role != "assistant":
        raise PromptError(
            f"message {position} ({role}) has tool_calls: only messages of the assistant may"
        )
    return Message(
        "system" if role == "developer" else role,
        content,
        tool_calls,
        str(message.get("tool_call_id") or ""),
    )


def _read_tool_call(call: Any, position: int) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    values = function if isinstance(function, Mapping) else {}
    name, arguments = values.get("name"), values.get("arguments")
    try:
        is_object = isinstance(arguments, str) and isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not isinstance(name, str) or not name or not is_object:
        raise PromptError(
            f"message {position} has an invalid call in tool_calls: expected "
            '{"id": …, "type": "function", "function": {"name": …, "arguments": …}}, with the '
            "arguments as the text of a JSON object"
        )
    return ToolCall(name, str(arguments), str(call.get("id") or ""))


def _read_content(
    role: str, content: object, position: int, images: list[Any]
) -> tuple[Text | ImageSlot, ...]:
    if role == "assistant" and (content is None or content == []):
        content = ""
    if isinstance(content, str):
        return (Text(content),)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(
            f"message {position} needs content: a string or a list of parts, "
            f"not {type(content).__name__}"
        )
    return tuple(_read_part(part, position, images) for part in content)


def _read_part(part: Any, position: int, images: list[Any]) -> Text | ImageSlot:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind in _TEXT_TYPES and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind in _IMAGE_TYPES or kind in _VIDEO_TYPES:
        slot_kind: Literal["image", "video"] = "image" if kind in _IMAGE_TYPES else "video"
        images.append(_part_source(part, slot_kind))
        return ImageSlot(len(images) - 1, slot_kind, _part_options(part, slot_kind))
    raise PromptError(
        f"message {position} has an invalid part of type {kind!r}: expected "
        '{"type": "text", "text": …}, {"type": "image_url", "image_url": {"url": …}}, '
        '{"type": "image", "image": …}, {"type": "video_url", "video_url": {"url": …}} or '
        '{"type": "video", "video": …}'
    )


def _part_source(part: Mapping[str, Any], kind: str) -> Any:
    """Return the image or video of a part, or ``None``.

    White space around a URL is not part of it. A path may begin or end with a space.
    """
    source = next((part[key] for key in _SOURCE_KEYS[kind] if part.get(key) is not None), None)
    source = source.get("url") if isinstance(source, Mapping) else source
    return source.strip(_URL_SPACE) if isinstance(source, str) and _URL.match(source) else source


def _part_options(part: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the options of an image or video: keys of the part, and of ``image_url``."""
    options = {key: value for key, value in part.items() if key not in _SOURCE_KEYS[kind]}
    if isinstance(url := part.get(f"{kind}_url"), Mapping):
        options |= {key: value for key, value in url.items() if key != "url"}
    if options.get("detail") == "auto":  # the default of OpenAI's clients
        del options["detail"]
    return {
        key: value
        for key, value in options.items()
        if value is not None and key not in _IGNORED_KEYS
    }


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind == "image" else f"a {kind}"


def _shift_slots(message: Message, num_images: int) -> Message:
    content = tuple(
        replace(part, index=part.index + num_images) if isinstance(part, ImageSlot) else part
        for part in message.content
    )
    return replace(message, content=content)
