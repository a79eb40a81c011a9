"""Reads the grammar of a completion from the fields of a chat request that can state one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlcore.engines.grammar import Grammar
from vlcore.errors import GrammarError
from vlcore.server.errors import ApiError
from vlcore.server.schema.output_format import JsonObjectFormat, JsonSchemaFormat
from vlcore.server.schema.request import ChatRequest


def parse_grammar(
    request: ChatRequest, make_call_grammar: Callable[[], Grammar] | None = None
) -> tuple[str, Grammar] | None:
    """Return the grammar of a request, and the field that states it; ``None`` for free text.

    Args:
        request: The request.
        make_call_grammar: Creates the grammar of the calls of tools that the request requires.

    Raises:
        ApiError: The grammar is invalid, or several fields state one.
    """
    stated = {field: make for field, make, value in _candidates(request) if value}
    if make_call_grammar is not None:
        stated["tools"] = make_call_grammar
    if not stated:
        return None
    field, make = next(iter(stated.items()))
    if len(stated) > 1:
        raise ApiError(
            400,
            "invalid_value",
            f"{field}: only one field may state the form of the completion; {', '.join(stated)} do",
            field,
        )
    try:
        return field, make()
    except GrammarError as error:
        raise grammar_error(error, field) from None


def grammar_error(error: GrammarError, field: str | None) -> ApiError:
    """Return the error of a grammar as one of the API."""
    message = f"{field}: {error}" if field else str(error)
    return ApiError(400, "invalid_grammar", message, field)


def _candidates(request: ChatRequest) -> list[tuple[str, Callable[[], Grammar], Any]]:
    """Return each field that can state a grammar, how to make the grammar, and its value."""
    response_format = request.response_format
    outputs = request.structured_outputs
    is_object = isinstance(response_format, JsonObjectFormat)
    schema = response_format.json_schema if isinstance(response_format, JsonSchemaFormat) else None
    candidates: list[tuple[str, Callable[[], Grammar], Any]] = [
        ("response_format", Grammar.json_object, is_object),
        ("guided_json", lambda: Grammar.json_schema(_stated(request.guided_json)),
         request.guided_json is not None),
        ("guided_regex", lambda: Grammar.regex(request.guided_regex or ""), request.guided_regex),
        ("guided_choice", lambda: Grammar.choice(request.guided_choice or []),
         request.guided_choice),
    ]  # fmt: skip
    if schema is not None:
        field = "response_format.json_schema.schema"
        candidates.append((field, lambda: Grammar.json_schema(schema.schema_), True))
    if outputs is not None:
        candidates += [
            ("structured_outputs.json", lambda: Grammar.json_schema(_stated(outputs.json_)),
             outputs.json_ is not None),
            ("structured_outputs.regex", lambda: Grammar.regex(outputs.regex or ""), outputs.regex),
            ("structured_outputs.choice", lambda: Grammar.choice(outputs.choice or []),
             outputs.choice),
            ("structured_outputs.json_object", Grammar.json_object, outputs.json_object),
        ]  # fmt: skip
    return candidates


def _stated(schema: dict[str, Any] | str | None) -> dict[str, Any] | str:
    return {} if schema is None else schema
