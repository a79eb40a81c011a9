"""Python source of values, in the style of a formatter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

_WIDTH = 100


def literal(value: Any, *, before: int = 0, indent: int = 0) -> str:
    """Write a value of JSON, or a tuple, as Python source.

    Args:
        value: the value.
        before: number of characters before it on its line.
        indent: number of spaces before its closing bracket if it takes several lines.
    """
    short = _short(value)
    if before + len(short) <= _WIDTH or not isinstance(value, Mapping | list | tuple) or not value:
        return short
    inner = indent + 4
    lines = []
    if isinstance(value, Mapping):
        opening, closing = "{", "}"
        for key, item in value.items():
            name = f"{_short(key)}: "
            text = literal(item, before=inner + len(name) + 1, indent=inner)
            lines.append(f"{' ' * inner}{name}{text},")
    else:
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ")")
        lines = [f"{' ' * inner}{literal(item, before=inner + 1, indent=inner)}," for item in value]
    return "\n".join([opening, *lines, " " * indent + closing])


def import_line(module: str, *names: str) -> str:
    """Write an import of names from a module."""
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])


def _short(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + _joined(f"{_short(key)}: {_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + _joined(map(_short, value)) + "]"
    if isinstance(value, tuple):
        comma = "," if len(value) == 1 else ""
        return "(" + _joined(map(_short, value)) + comma + ")"
    return repr(value)


def _joined(items: Iterable[str]) -> str:
    return ", ".join(items)
