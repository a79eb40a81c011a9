"""Tools of a chat request: what the model must generate, and the calls in its completion."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlcore.engines.grammar import Grammar
from vlcore.prompts.chat_template import ChatTemplate
from vlcore.prompts.messages import ToolCall
from vlcore.prompts.tools import ToolCallParser, ToolDelta
from vlcore.server.errors import ApiError
from vlcore.server.schema.request import ChatRequest
from vlcore.server.schema.tools import ChosenTool, ToolFunction


class CallReader(Protocol):
    """Reads text and calls of tools from a completion, chunk by chunk."""

    def feed(self, text: str) -> ToolDelta:
        """Add the next text of the completion."""

    def finish(self) -> ToolDelta:
        """Return what is left at the end of the completion."""


@dataclass(frozen=True)
class ToolUse:
    """How one request uses tools."""

    tools: tuple[Mapping[str, Any], ...]
    """The tools of the prompt."""
    make_reader: Callable[[], CallReader]
    """Creates the reader of one completion."""
    make_grammar: Callable[[], Grammar] | None = None
    """Creates the grammar of calls that are required."""


def parse_tools(request: ChatRequest, template: ChatTemplate | None) -> ToolUse | None:
    """Return how a request uses tools; ``None`` if it does not.

    Raises:
        ApiError: The request is invalid, or the model does not support tools.
    """
    choice = request.tool_choice or "auto"
    if not request.tools:
        if choice not in ("auto", "none"):
            raise ApiError(400, "invalid_value", "tool_choice: it requires tools", "tool_choice")
        return None
    if choice == "none":
        return None
    if template is None or not template.supports_tools:
        raise ApiError(
            400,
            "tools_not_supported",
            "tools: the chat template of this model does not support tools; leave them out, or "
            "serve a model whose template does",
            "tools",
        )
    functions = {tool.function.name: tool.function for tool in request.tools}
    tools = tuple(
        {"type": "function", "function": _as_mapping(tool.function)} for tool in request.tools
    )
    if isinstance(choice, ChosenTool):
        function = functions.get(choice.function.name)
        if function is None:
            raise ApiError(
                400,
                "invalid_value",
                f"tool_choice: {choice.function.name[:100]!r} is not one of the tools",
                "tool_choice",
            )
        parameters = function.parameters or {"type": "object"}
        return ToolUse(
            tools, lambda: NamedCallReader(function.name), lambda: Grammar.json_schema(parameters)
        )
    if choice == "required":
        schema = _calls_schema(functions, is_single=request.parallel_tool_calls is False)
        return ToolUse(tools, RequiredCallReader, lambda: Grammar.json_schema(schema))
    response_template = template.response_template
    if response_template is None:
        raise ApiError(
            400,
            "tools_not_supported",
            "tools: the format in which this model calls tools is not known; set tool_choice to "
            "'required' or to a function",
            "tools",
        )
    return ToolUse(tools, lambda: ToolCallParser(response_template))


def _as_mapping(function: ToolFunction) -> dict[str, Any]:
    values: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        values["description"] = function.description
    return values | {"parameters": function.parameters or {"type": "object", "properties": {}}}


def _calls_schema(functions: Mapping[str, ToolFunction], *, is_single: bool) -> dict[str, Any]:
    """Return the schema of a list of calls."""
    calls = []
    for index, (name, function) in enumerate(functions.items()):
        root = f"#/items/anyOf/{index}/properties/parameters"
        parameters = _move_references(function.parameters or {"type": "object"}, root)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    return schema | {"maxItems": 1} if is_single else schema


def _move_references(schema: Any, root: str) -> Any:
    """Make the references within a schema point to its new place within another one."""
    if isinstance(schema, list):
        return [_move_references(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _move_references(value, root) for key, value in schema.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


@dataclass
class NamedCallReader:
    """Reads a completion that is the arguments of one function."""

    name: str
    _texts: list[str] = field(default_factory=list)

    def feed(self, text: str) -> ToolDelta:
        """Keep the next part of the arguments."""
        self._texts.append(text)
        return ToolDelta()

    def finish(self) -> ToolDelta:
        """Return the call."""
        return ToolDelta(tool_calls=(ToolCall(self.name, "".join(self._texts)),))


@dataclass
class RequiredCallReader:
    """Reads a completion that is a list of calls, each of which is returned when it is complete."""

    _text: str = ""

    def feed(self, text: str) -> ToolDelta:
        """Add the next part of the list."""
        self._text += text
        return ToolDelta(tool_calls=self._complete_calls()) if "}" in text else ToolDelta()

    def finish(self) -> ToolDelta:
        """Return nothing: a call that is incomplete at the end is none."""
        return ToolDelta()

    def _complete_calls(self) -> tuple[ToolCall, ...]:
        calls: list[ToolCall] = []
        while True:
            rest = self._text.lstrip("[, \n\t")
            try:
                value, end = json.JSONDecoder().raw_decode(rest)
            except ValueError:
                return tuple(calls)
            self._text = rest[end:]
            arguments = json.dumps(value["parameters"], ensure_ascii=False)
            calls.append(ToolCall(value["name"], arguments))


@dataclass
class CompletionCalls:
    """The calls of one completion, as the API returns them.

    White space around calls is no text of the completion.
    """

    reader: CallReader
    num_calls: int = 0
    _white_space: str = ""
    _has_text: bool = False

    def feed(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Return the text and the calls that are complete with the next text."""
        return self._convert(self.reader.feed(text))

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """Return what is left at the end."""
        return self._convert(self.reader.finish())

    def _convert(self, delta: ToolDelta) -> tuple[str, list[dict[str, Any]]]:
        text = self._white_space + delta.text
        stripped = text.rstrip() if self._has_text else text.strip()
        self._white_space = text[len(text.rstrip()) :] if stripped else text
        self._has_text = self._has_text or bool(stripped)
        calls: list[dict[str, Any]] = []
        for call in delta.tool_calls:
            calls.append(
                {
                    "index": self.num_calls,
                    "id": f"call_{secrets.token_hex(12)}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
            )
            self.num_calls += 1
        return stripped, calls
