"""Tools in prompts and answers: what a template is given, and how calls are read from an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlcore.prompts.messages import ToolCall

HERMES_FORMAT: Mapping[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "content": {},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": "{content}"},
        },
    },
}
"""The calls of many models: JSON with name and arguments between two tags."""
_SCHEMA_WORDS = frozenset(
    {
        *(
            "type",
            "function",
            "name",
            "description",
            "parameters",
            "properties",
            "required",
            "items",
        ),
        *("enum", "anyOf", "additionalProperties", "default", "format", "strict", "nullable"),
        *("object", "array", "string", "integer", "number", "boolean", "null"),
    }
)
"""Words of a tool's description that templates look at; they are not replaced."""


@dataclass(frozen=True)
class ToolDelta:
    """What a chunk of an answer adds."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


def map_texts(value: Any, replace: Callable[[str], str]) -> Any:
    """Replace all texts and keys of a JSON value, except words of JSON schemas."""
    if isinstance(value, str):
        return value if value in _SCHEMA_WORDS else replace(value)
    if isinstance(value, Mapping):
        return {
            key if key in _SCHEMA_WORDS else replace(str(key)): map_texts(item, replace)
            for key, item in value.items()
        }
    if isinstance(value, Sequence):
        return [map_texts(item, replace) for item in value]
    return value


class ToolCallParser:
    """Reads the calls of tools from an answer, chunk by chunk, with transformers' parser.

    A call that is malformed is ordinary text.

    Args:
        response_template: how the model writes calls; see :attr:`ChatTemplate.response_template`.
    """

    def __init__(self, response_template: Mapping[str, Any]) -> None:
        self._response_template = dict(response_template)
        self._parser = self._make_parser()
        self._call_text = ""
        """The text since the last call or text was returned."""

    def feed(self, text: str) -> ToolDelta:
        """Add the next text of the answer."""
        self._call_text += text
        return self._read(lambda: self._parser.feed(text))

    def finish(self) -> ToolDelta:
        """Return what is left at the end of the answer."""
        return self._read(lambda: self._parser.finalize()[1])

    def _make_parser(self) -> Any:
        from transformers.utils.chat_parsing import ResponseParser

        make: Any = ResponseParser  # which has no annotations
        return make(self._response_template, prefix="")

    def _read(self, advance: Callable[[], list[dict[str, Any]]]) -> ToolDelta:
        try:
            events = advance()
            calls = [
                call
                for event in events
                if event["type"] == "region_close" and event["field"] == "tool_calls"
                for call in _as_calls(event["value"])
            ]
        except (ValueError, KeyError, TypeError, RecursionError):
            text, self._call_text = self._call_text, ""
            self._parser = self._make_parser()
            return ToolDelta(text)
        texts = [
            event["text"]
            for event in events
            if event["type"] == "region_chunk" and event["field"] == "content"
        ]
        if texts or calls:
            self._call_text = ""
        return ToolDelta("".join(texts), tuple(calls))


def _as_calls(value: Any) -> list[ToolCall]:
    """Read what the parser returned for one region, or a list of calls.

    Raises:
        ValueError: It is not a call.
    """
    if isinstance(value, list):
        return [call for item in value for call in _as_calls(item)]
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    arguments = function.get("arguments", {}) if isinstance(function, dict) else None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("a call needs a name and arguments")
    return [ToolCall(name, json.dumps(arguments, ensure_ascii=False))]
