"""What docs/contract.md promises, and which names of a piece of code or prose go beyond it."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from typing import TypeGuard

from documents import ROOT

from vlcore import hookspecs

_SECTION = re.compile(r"^## Public names\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| `(vlcore(?:\.\w+)*)` \|", re.MULTILINE)
_DOTTED = re.compile(r"\bvlcore(?:\.[A-Za-z_]\w*)+")
_GROUPS = {hookspecs.ENTRY_POINT_GROUP, hookspecs.GENERIC_GROUP, hookspecs.SERVES_GROUP}


@cache
def public_modules() -> tuple[str, ...]:
    """The modules in the table of the contract's page."""
    page = (ROOT / "docs" / "contract.md").read_text("utf-8")
    (section,) = _SECTION.findall(page)
    return tuple(_ROW.findall(section))


@cache
def public_names(module: str) -> frozenset[str]:
    """The names that a module lists in ``__all__``."""
    return frozenset(importlib.import_module(module).__all__)


def is_public(dotted: str) -> bool:
    """Whether a dotted name is a public module, a public name, or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if module in public_modules():
            return length == len(parts) or parts[length] in public_names(module)
    return False


def internal_names_in_code(source: str) -> list[str]:
    """List what Python code imports, reads or names of vlcore that is not public."""
    return [name for name in _names_in_code(ast.parse(source)) if not is_public(name)]


def internal_names_in_prose(text: str) -> list[str]:
    """List the dotted names of vlcore in a text that are not public."""
    return [name for name in _DOTTED.findall(text) if name not in _GROUPS and not is_public(name)]


def _names_in_code(tree: ast.Module) -> Iterator[str]:
    modules: dict[str, str] = {}  # by the name that a module has in the code
    for node in ast.walk(tree):
        for dotted, name, meaning in _imports(node):
            yield dotted
            modules[name] = meaning
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = _dotted(node).partition(".")
            if root in modules:
                yield f"{modules[root]}.{rest}"
        elif isinstance(node, ast.Constant) and _is_dotted_name(node.value):
            yield node.value  # a module named at run time


def _imports(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Give what a statement imports of vlcore, the name that it binds, and what that means."""
    if isinstance(node, ast.Import):
        for alias in filter(_is_ours, node.names):
            yield (alias.name, alias.asname or "vlcore", alias.name if alias.asname else "vlcore")
    elif isinstance(node, ast.ImportFrom) and not node.level:
        for alias in node.names if _is_ours(node) else ():
            dotted = f"{node.module}.{alias.name}"
            yield (
                dotted if node.module in public_modules() else str(node.module),
                alias.asname or alias.name,
                dotted,
            )


def _is_dotted_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(_DOTTED.fullmatch(value)) and value not in _GROUPS


def _is_ours(imported: ast.alias | ast.ImportFrom) -> bool:
    name = imported.name if isinstance(imported, ast.alias) else imported.module
    return (name or "").partition(".")[0] == "vlcore"


def _dotted(node: ast.expr) -> str:
    """Write an attribute of a name as code does; empty where it is one of something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""
