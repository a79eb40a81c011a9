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


def names_for_type_checkers() -> dict[str, str]:
    """Read the home of each name off the imports under ``if TYPE_CHECKING``."""
    tree = ast.parse(Path(vlcore.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    homes: dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        module = node.module.removeprefix("vlcore.")
        homes |= {alias.name: module for alias in node.names}
    return homes


def test_all_lists_what_is_exported() -> None:
    assert set(vlcore.__all__) == set(vlcore._HOMES) | EXCEPTIONS | {"__version__"}


def test_all_is_sorted_without_doubles() -> None:
    assert vlcore.__all__ == sorted(set(vlcore.__all__))


def test_type_checkers_and_python_see_the_same_homes() -> None:
    assert names_for_type_checkers() == vlcore._HOMES


@pytest.mark.parametrize("name", vlcore.__all__)
def test_every_name_is_its_homes(name: str) -> None:
    value = getattr(vlcore, name)
    if name in vlcore._HOMES:
        home = importlib.import_module(f"vlcore.{vlcore._HOMES[name]}")
        assert value is getattr(home, name)


@pytest.mark.parametrize("name", [name for name in vlcore.__all__ if name != "__version__"])
def test_every_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(vlcore, name))


def test_dir_lists_the_public_names() -> None:
    assert set(vlcore.__all__) <= set(dir(vlcore))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'pipelin'"):
        vlcore.pipelin  # noqa: B018


def test_pipeline_is_the_function_after_the_first_import_of_its_module() -> None:
    program = "import vlcore.pipeline, inspect; assert inspect.isfunction(vlcore.pipeline)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_pipeline_stays_the_function_once_used(monkeypatch: pytest.MonkeyPatch) -> None:
    before = vlcore.pipeline
    monkeypatch.setattr(vlcore, "pipeline", before)  # puts it back afterwards
    monkeypatch.delitem(sys.modules, "vlcore.pipeline")
    importlib.import_module("vlcore.pipeline")
    assert vlcore.pipeline is not before
    assert inspect.isfunction(vlcore.pipeline)


def test_the_pipelines_module_is_still_found_by_name() -> None:
    module = importlib.import_module("vlcore.pipeline")
    assert inspect.ismodule(module)
    assert module.pipeline is vlcore.pipeline
