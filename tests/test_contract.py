"""docs/contract.md documents the hooks of the code, argument by argument."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

import vlcore
from vlcore import hookspecs

PAGE = (Path(__file__).parents[1] / "docs" / "contract.md").read_text("utf-8")
SECTION = re.compile(r"^### (vl_\w+)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
SIGNATURE = re.compile(r"^```pyi\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def signature_of(function: ast.stmt) -> str:
    """Write a hook's signature in one way, whatever its layout."""
    assert isinstance(function, ast.FunctionDef)
    returns = "" if function.returns is None else ast.unparse(function.returns)
    return f"{function.name}({ast.unparse(function.args)}) -> {returns}"


def signatures_in_code() -> dict[str, str]:
    hooks = [value for name, value in vars(hookspecs).items() if name.startswith("vl_")]
    sources = [ast.parse(textwrap.dedent(inspect.getsource(hook))).body[0] for hook in hooks]
    return {hook.__name__: signature_of(one) for hook, one in zip(hooks, sources, strict=True)}


def signatures_on(page: str) -> dict[str, str]:
    found = {}
    for name, text in SECTION.findall(page):
        (block,) = SIGNATURE.findall(text)
        (function,) = ast.parse(block).body
        found[name] = signature_of(function)
    return found


def differences(page: str) -> list[str]:
    """List the hooks whose signatures differ, and the arguments that are not explained."""
    code, docs = signatures_in_code(), signatures_on(page)
    wrong = [
        f"{name}: {docs.get(name, 'no section')} on the page, {code.get(name, 'no hook')} in code"
        for name in sorted({*code, *docs})
        if code.get(name) != docs.get(name)
    ]
    for name, text in SECTION.findall(page):
        explained = re.findall(r"^- `(\w+)`: ", text, re.MULTILINE)
        arguments = list(inspect.signature(getattr(hookspecs, name)).parameters)
        if explained != arguments:
            wrong.append(f"{name}: explains {explained}, takes {arguments}")
    return wrong


def test_the_page_and_the_code_agree() -> None:
    assert len(signatures_in_code()) == 4
    assert differences(PAGE) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: str | None", "name: str"),
        ("name: str | None) ->", "name: str | None, style: str) ->"),
        ("    max_memory: MaxMemory | None,\n", ""),
        ("-> Literal[True] | str", "-> bool"),
        ("-> Literal[True] | str", "-> Literal[True] | str | None"),
        ("checkpoint: Checkpoint) -> LanguageModel", "model: Checkpoint) -> LanguageModel"),
        ("- `dtype`: the", "- `precision`: the"),
        ("- `max_memory`: the", "`max_memory`: the"),
        ("files: CheckpointFiles) -> Literal", "files: CheckpointFiles = None) -> Literal"),
    ],
)
def test_a_page_that_differs_is_seen(old: str, new: str) -> None:
    assert PAGE.count(old) == 1
    assert differences(PAGE.replace(old, new)) != []


def test_a_hook_without_a_section_is_seen() -> None:
    page = re.sub(r"### vl_language_model.*", "", PAGE, flags=re.DOTALL)
    (difference,) = differences(page)
    assert difference.startswith("vl_language_model: no section on the page")


def test_a_new_argument_breaks_no_hook_and_a_deprecated_one_warns_where_it_is_named() -> None:
    """The two ways in which hooks may change according to the contract."""

    @hookspecs.hookspec(
        firstresult=True,
        warn_on_impl_args={"name": DeprecationWarning("name goes in 0.3: take style")},
    )
    def vl_chat_template(checkpoint: object, name: str, style: str) -> object:
        raise NotImplementedError

    @vlcore.hookimpl(specname="vl_chat_template")
    def without(checkpoint: object) -> object:
        return "without"

    @vlcore.hookimpl(specname="vl_chat_template")
    def with_name(checkpoint: object, name: str) -> object:
        return name

    def manager_with(hook: object) -> pluggy.PluginManager:
        manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        specs: Any = SimpleNamespace(vl_chat_template=vl_chat_template)
        manager.add_hookspecs(specs)
        manager.register(SimpleNamespace(hook=hook))
        return manager

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet = manager_with(without)
        assert caught == []
        warned = manager_with(with_name)
    assert quiet.hook.vl_chat_template(checkpoint=1, name="old", style="new") == "without"
    assert warned.hook.vl_chat_template(checkpoint=1, name="old", style="new") == "old"
    (warning,) = caught
    assert "name goes in 0.3" in str(warning.message)
    assert warning.filename == __file__
