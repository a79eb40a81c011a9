from __future__ import annotations

import json
from typing import Any

import pytest

from vlcore.engines.generation import GenerationConfig
from vlcore.engines.grammar import Grammar
from vlcore.errors import GrammarError, OptionError


def test_a_schema_may_be_an_object_or_its_text() -> None:
    schema = {"type": "object", "description": "Größe"}
    assert Grammar.json_schema(json.dumps(schema)) == Grammar.json_schema(schema)
    assert json.loads(Grammar.json_schema(schema).source) == schema
    assert Grammar.json_schema(True).source == "true"
    assert Grammar.json_object() == Grammar.json_schema({"type": "object"})


def test_grammars_are_compared_and_hashed_by_their_content() -> None:
    config = GenerationConfig(grammar=Grammar.choice(["a", "b"]))
    assert hash(config) == hash(GenerationConfig(grammar=Grammar.choice(("a", "b"))))
    assert Grammar.regex("a") != Grammar.choice(["a"])


def looped() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    return schema


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def wide() -> dict[str, Any]:
    """A schema whose parts are shared, so that its text would have 10^30 values."""
    schema: list[Any] = []
    for _ in range(30):
        schema = [schema] * 10
    return {"allOf": schema}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('"a"', "must be an object, true or false, not str"),
        ([], "must be an object, true or false, not list"),
        (None, "must be an object, true or false, not NoneType"),
        (deep(64), "nested more than 64 levels"),
        (deep(1000), "nested more than 64 levels"),
        (looped(), "nested more than 64 levels"),
        (wide(), "more values than that"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ({"const": {1, 2}}, "cannot be written as JSON"),
        ({"const": "a" * 200_000}, "at most 131072 bytes"),
        (" " * 200_000, "at most 131072 bytes"),
        ({"const": "\ud800"}, "valid Unicode"),
    ],
)  # fmt: skip
def test_a_schema_is_checked_before_it_is_compiled(schema: Any, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        Grammar.json_schema(schema)


def test_a_schema_of_64_levels_is_accepted() -> None:
    assert Grammar.json_schema(deep(62) | {"enum": [1]}).kind == "json_schema"
    assert Grammar.json_schema(deep(63)).kind == "json_schema"


@pytest.mark.parametrize("pattern", ["", None, 3, "a" * 200_000, "\ud800"])
def test_a_pattern_is_a_string_of_bounded_length(pattern: Any) -> None:
    with pytest.raises(GrammarError):
        Grammar.regex(pattern)


@pytest.mark.parametrize("choices", [[], "abc", [""], ["a", 3], None, 3, ["a"] * 100_000])
def test_choices_are_strings_that_are_not_empty(choices: Any) -> None:
    with pytest.raises(GrammarError):
        Grammar.choice(choices)


@pytest.mark.parametrize("grammar", ["a+", {"type": "object"}, 3])
def test_the_option_is_a_grammar(grammar: Any) -> None:
    with pytest.raises(OptionError, match="grammar must be a Grammar"):
        GenerationConfig(grammar=grammar)
