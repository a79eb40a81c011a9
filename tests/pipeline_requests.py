"""Images, messages and options that the tests of pipelines share."""

from __future__ import annotations

import threading
from typing import Any

from PIL import Image

from vlcore.engines.generation import GenerationConfig
from vlcore.inference.response import Response

SHORT = GenerationConfig(max_new_tokens=6)
RED = Image.new("RGB", (50, 30), "red")
BLUE = Image.new("RGB", (30, 50), "blue")


def user(*content: Any) -> dict[str, Any]:
    """Return a user's message of texts and images."""
    parts = [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]
    return {"role": "user", "content": parts}


def image_part(image: Any) -> dict[str, Any]:
    """Return an image as a part of a message."""
    return {"type": "image", "image": image}


def join(chunks: list[Response], index: int = 0) -> tuple[str, tuple[int, ...]]:
    """Join the chunks of one response of a list to its text and its tokens."""
    own = [chunk for chunk in chunks if chunk.index == index]
    text = "".join(chunk.text for chunk in own)
    return text, tuple(token_id for chunk in own for token_id in chunk.token_ids)


def vlcore_threads() -> set[threading.Thread]:
    """Return the threads of pipelines, and of the event loops that they use."""
    return {t for t in threading.enumerate() if t.name.startswith(("vlcore", "asyncio"))}
