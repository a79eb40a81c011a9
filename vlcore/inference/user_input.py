"""``parse_prompt``: reads any form of a prompt as a ``Conversation``.

The sources of images remain as they are; those of videos become ``Video`` or ``UndecodedVideo``
values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from vlcore.errors import PromptError
from vlcore.media.source import describe
from vlcore.media.undecoded_video import (
    SAMPLING_OPTIONS,
    UndecodedVideo,
    VideoInput,
    is_video_name,
)
from vlcore.media.video_loader import DEFAULT_FRAME_RATE
from vlcore.prompts.conversation import Conversation, read_conversation
from vlcore.prompts.messages import ImageSlot, Message, Text

_Bytes = bytes | bytearray | memoryview
_URL_SCHEMES = ("http://", "https://", "data:", "file:")

Prompt = str | tuple[Any, Any] | Sequence[Mapping[str, Any]] | Conversation
"""A text, a pair of a text and an image, a video or a list of them in either order, OpenAI-style
messages, or a conversation that was read before."""


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
            return _read_sources(read_conversation(messages))
    raise PromptError(
        "a prompt must be a text, a pair (text, image or video, or a list of them) or a list of "
        f"OpenAI-style messages; this one is {describe(prompt)} ({type(prompt).__name__})"
    )


def _parse_pair(pair: tuple[Any, ...]) -> Conversation:
    if len(pair) != 2:
        raise PromptError(
            "a pair (text, image or video, or a list of them) must have 2 items; it has "
            f"{len(pair)} items"
        )
    text, media = pair if _is_text_first(*pair) else (pair[1], pair[0])
    if not isinstance(text, str):
        raise PromptError(
            f"one item of a pair must be the text; they are {type(pair[0]).__name__} and "
            f"{type(pair[1]).__name__}"
        )
    sources = [
        UndecodedVideo(source)
        if isinstance(source, str | Path) and is_video_name(str(source))
        else source
        for source in (media if isinstance(media, list | tuple) else (media,))
    ]
    slots = tuple(
        ImageSlot(index, "video" if isinstance(source, VideoInput) else "image")
        for index, source in enumerate(sources)
    )
    return Conversation((Message("user", (*slots, Text(text))),), tuple(sources))


def _is_text_first(first: Any, second: Any) -> bool:
    if not isinstance(first, str):
        return False
    return not isinstance(second, str) or _looks_like_image(second) or not _looks_like_image(first)


def _looks_like_image(text: str) -> bool:
    if text.startswith(_URL_SCHEMES) or is_video_name(text):
        return True
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # it is too long or not a path
        return False


def _read_sources(conversation: Conversation) -> Conversation:
    """Check that every slot has an image or a video, and read the sources of videos.

    Raises:
        PromptError: A slot has no image or video, or an object that is not one.
    """
    sources: list[Any] = []
    messages = []
    for position, message in enumerate(conversation.messages):
        content: list[Text | ImageSlot] = []
        for part in message.content:
            slot = part
            if isinstance(slot, ImageSlot):
                source = conversation.images[slot.index]
                if slot.is_video:
                    slot, source = _read_video(slot, source, position)
                elif not isinstance(source, str | Image.Image | Path | _Bytes):
                    raise PromptError(
                        f"the image part in message {position} has no image: expected "
                        '{"type": "image_url", "image_url": {"url": …}} with a URL or a path, or '
                        '{"type": "image", "image": …} with a PIL image'
                    )
                sources.append(source)
            content.append(slot)
        messages.append(replace(message, content=tuple(content)))
    return replace(conversation, messages=tuple(messages), images=tuple(sources))


def _read_video(slot: ImageSlot, source: Any, position: int) -> tuple[ImageSlot, VideoInput]:
    """Return the video of a slot, and the slot without the options of sampling."""
    sampling = {name: slot.options[name] for name in SAMPLING_OPTIONS & slot.options.keys()}
    others = {name: value for name, value in slot.options.items() if name not in sampling}
    unused = set(sampling)
    if isinstance(source, list | tuple) and source:
        source = UndecodedVideo(tuple(source), {"fps": sampling.pop("fps", DEFAULT_FRAME_RATE)})
        unused -= {"fps"}
    elif isinstance(source, str | Path | _Bytes):
        data = bytes(source) if isinstance(source, bytearray | memoryview) else source
        source, unused = UndecodedVideo(data, sampling), set()
    elif not isinstance(source, VideoInput):
        raise PromptError(
            f"the video part in message {position} has no video: expected "
            '{"type": "video_url", "video_url": {"url": …}} with a URL or a path, or '
            '{"type": "video", "video": …} with a vlcore.Video or a list of frames'
        )
    if unused:
        raise PromptError(
            f"the video in message {position} consists of frames, which are not sampled again: "
            f"leave out {', '.join(sorted(unused))}"
        )
    return replace(slot, options=others), source
