"""Finds the part of a JSON schema that cannot be compiled, because llguidance does not name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_MAX_TRIED_SUBSCHEMAS = 256
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "dependentSchemas")
_LISTS_OF_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SCHEMAS = (
    *("items", "additionalProperties", "additionalItems", "propertyNames", "contains", "not"),
    *("if", "then", "else", "unevaluatedItems", "unevaluatedProperties"),
)
_DEFINITIONS = ("$defs", "definitions")


def fault_path(schema: Any, has_fault: Callable[[Any], bool]) -> str:
    """Return the path of the innermost subschema that has a fault by itself, as a JSON Pointer.

    Args:
        schema: a JSON schema that has the fault.
        has_fault: returns whether a schema has the fault. It is called for a bounded number of
            subschemas, together with the definitions that they may refer to.
    """
    is_object = isinstance(schema, Mapping)
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema} if is_object else {}
    num_left = _MAX_TRIED_SUBSCHEMAS

    def is_faulty(subschema: Any) -> bool:
        nonlocal num_left
        num_left -= 1
        alone = {**definitions, **subschema} if isinstance(subschema, Mapping) else subschema
        return num_left >= 0 and has_fault(alone)

    path, part = "", schema
    seen = set()
    while True:
        inner = next((item for item in _subschemas(part) if is_faulty(item[1])), None)
        if inner is not None:
            path += inner[0]
            part = inner[1]
            continue
        reference = part.get("$ref") if isinstance(part, Mapping) else None
        if not isinstance(reference, str) or reference in seen:
            return path
        seen.add(reference)
        target = _resolve(schema, reference)
        if target is None or not is_faulty(target):
            return path
        path, part = reference.removeprefix("#"), target


def _subschemas(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly within a schema, with their paths in it."""
    if not isinstance(schema, Mapping):
        return
    for keyword in _MAPS_OF_SCHEMAS:
        if isinstance(schema.get(keyword), Mapping):
            for name, subschema in schema[keyword].items():
                yield f"/{keyword}/{_escape(name)}", subschema
    for keyword in _LISTS_OF_SCHEMAS:
        if isinstance(schema.get(keyword), list):
            for index, subschema in enumerate(schema[keyword]):
                yield f"/{keyword}/{index}", subschema
    for keyword in _SCHEMAS:
        if isinstance(schema.get(keyword), Mapping | bool):
            yield f"/{keyword}", schema[keyword]


def _escape(name: str) -> str:
    return name[:100].replace("~", "~0").replace("/", "~1")


def _resolve(schema: Any, reference: str) -> Any:
    """Return the definition that a local reference points to, or ``None``."""
    root, _, pointer = reference.partition("#/")
    if root:
        return None
    for step in pointer.split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(schema, Mapping) or name not in schema:
            return None
        schema = schema[name]
    return schema
