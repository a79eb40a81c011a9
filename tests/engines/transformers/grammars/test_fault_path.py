from __future__ import annotations

from typing import Any

import pytest

from vlcore.engines.transformers.grammars.fault_path import fault_path

BAD = {"type": "bad"}


def has_fault(schema: Any) -> bool:
    """Return whether a schema or what it refers to is bad, as a compiler would."""
    definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}

    def is_bad(part: Any, seen: tuple[str, ...] = ()) -> bool:
        if isinstance(part, list):
            return any(is_bad(item, seen) for item in part)
        if not isinstance(part, dict):
            return False
        name = part.get("$ref", "").removeprefix("#/$defs/")
        if name and name not in seen and is_bad(definitions.get(name), (*seen, name)):
            return True
        inner = {key: value for key, value in part.items() if key != "$defs"}
        return part.get("type") == "bad" or any(is_bad(v, seen) for v in inner.values())

    return is_bad(schema)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (BAD, ""),
        ({"properties": {"a": {}, "b": BAD}}, "/properties/b"),
        ({"properties": {"a/b~c": BAD}}, "/properties/a~1b~0c"),
        ({"items": {"anyOf": [{}, {"prefixItems": [True, BAD]}]}}, "/items/anyOf/1/prefixItems/1"),
        ({"items": [BAD]}, "/items/0"),
        ({"not": {"if": BAD}}, "/not/if"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": BAD}}}, "/$defs/a/items"),
        ({"properties": {"x": {"$ref": "#/$defs/a"}},
          "$defs": {"b": {}, "a": {"properties": {"y": BAD}}}}, "/$defs/a/properties/y"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": BAD}}, "/$defs/b"),
    ],
)  # fmt: skip
def test_the_innermost_subschema_with_the_fault_is_named(schema: Any, path: str) -> None:
    assert has_fault(schema)
    assert fault_path(schema, has_fault) == path


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/missing"},
        {"$ref": "other.json#/$defs/a"},
        {"$ref": 3},
        {"properties": [BAD], "anyOf": BAD, "items": 3},
        True,
    ],
)
def test_references_that_lead_nowhere_end_the_search(schema: Any) -> None:
    assert fault_path(schema, lambda _: True) in ("", "/$defs/a")


def test_a_bounded_number_of_subschemas_is_tried() -> None:
    tried: list[Any] = []

    def has_no_fault(part: Any) -> bool:
        tried.append(part)
        return False

    schema: dict[str, Any] = {"properties": {str(i): {"items": {}} for i in range(10_000)}}
    assert fault_path(schema, has_no_fault) == ""
    assert len(tried) < 1000
