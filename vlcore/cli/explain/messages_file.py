"""Messages of a conversation from a JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlcore.errors import PromptError


def read_messages(path: str) -> list[Mapping[str, Any]]:
    """Read OpenAI-style messages.

    Args:
        path: the path of a JSON file, or ``-`` for standard input. It contains a list of messages,
            or an object with ``messages``, such as the body of a request.

    Raises:
        PromptError: the file cannot be read, or is not a list of messages.
    """
    name = "standard input" if path == "-" else path
    try:
        value = json.loads(sys.stdin.read() if path == "-" else Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PromptError(f"no messages could be read from {name}: {error}") from error
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        raise PromptError(
            f"{name} must contain a list of messages, such as "
            '[{"role": "user", "content": "Hello"}], or an object with a list of "messages"'
        )
    return messages
