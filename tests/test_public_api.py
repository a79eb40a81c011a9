from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import vlcore
from vlcore import errors

EXCEPTIONS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.VlcoreError)
}


STUB = Path(vlcore.__file__).with_suffix(".pyi")
NAMES = dir(vlcore)


def homes() -> dict[str, str]:
    """Read the module of each public name from the stub that the package loads its names by."""
    found: dict[str, str] = {}
    for node in ast.parse(STUB.read_text("utf-8")).body:
        assert isinstance(node, ast.ImportFrom)
        assert all(alias.asname == alias.name for alias in node.names), "not exported to checkers"
        found |= {alias.name: f"vlcore.{node.module}" for alias in node.names}
    return found


def test_every_exported_name_is_listed() -> None:
    assert set(NAMES) == set(homes())
    assert set(homes()) >= EXCEPTIONS | {"__version__"}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_that_of_its_module(name: str) -> None:
    assert getattr(vlcore, name) is getattr(importlib.import_module(homes()[name]), name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_every_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(vlcore, name))


def test_dir_lists_the_public_names() -> None:
    assert set(NAMES) <= set(dir(vlcore))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="pipelin"):
        vlcore.pipelin  # type: ignore[attr-defined]  # noqa: B018


def test_importing_a_module_does_not_replace_a_public_name() -> None:
    program = (
        "import vlcore.inference.pipeline, inspect; assert inspect.isfunction(vlcore.pipeline)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
