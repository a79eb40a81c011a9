"""Translates a ``Grammar`` into the grammar language of llguidance.

This module is also imported by the process of trial compilations, and must be cheap to import.
"""

from __future__ import annotations

import json
from typing import Any

_WHITE_SPACE = r"(\n[ \t]{0,64}| )?"
"""Between the tokens of JSON: none, one space, or a line break with an indentation. Unbounded white
space would let a model that prefers it write nothing else."""
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_items_in_row": 1_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
}
"""Limits of llguidance: a step takes milliseconds, and the states of an answer less than 40 MB."""


def translate(kind: str, source: str) -> str:
    """Return llguidance's grammar for a :class:`~vlcore.Grammar`.

    Raises:
        ValueError: the source cannot be read.
    """
    from llguidance import LLMatcher, regex_to_lark

    if kind == "json_schema":
        if source == "false":  # which takes no options
            return LLMatcher.grammar_from_json_schema(source)
        source = "{}" if source == "true" else source
        return LLMatcher.grammar_from_json_schema(
            source, overrides={"whitespace_pattern": _WHITE_SPACE}
        )
    if kind == "regex":
        # In JSON schemas as well, \\d, \\w and \\s are the classes of ASCII.
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(source, 'dws')}/")
    choices = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(source))
    return LLMatcher.grammar_from_lark("start: " + " | ".join(choices))


def make_limits() -> Any:
    """Return the limits of compilation and of each step."""
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False, **_LIMITS)
