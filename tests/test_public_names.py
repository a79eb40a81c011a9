"""Plugins, examples, documentation and new packages use only what docs/contract.md promises."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks_of
from public_names import (
    internal_names_in_code,
    internal_names_in_prose,
    is_public,
    public_modules,
    public_names,
)

import vlcore
from vlcore.cli.new.scaffold import PluginNames, render

PACKAGES = sorted(
    path
    for folder in ("plugins", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
INTERNALS = ROOT / "docs" / "architecture.md"
"""The page for those who work on vlcore itself."""
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "plugins").glob("*/README.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
BLOCKS = [block for block in blocks_of(PAGES) if block.language in ("python", "pyi", "py")]
NEW_PACKAGE = render(PluginNames.parse("vl-plugin-mosaic", "MosaicForConditionalGeneration"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# -- what is promised


@pytest.mark.parametrize("module", public_modules())
def test_a_public_module_lists_names_that_exist_and_are_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    names = public_names(module)
    assert names
    assert len(loaded.__all__) == len(names)
    for name in names - {"__version__"}:
        assert not name.startswith("_")
        assert inspect.getdoc(getattr(loaded, name)), f"{module}.{name}"


@pytest.mark.parametrize("module", public_modules())
def test_every_public_name_is_in_the_reference(module: str) -> None:
    reference = (ROOT / "docs" / "api.md").read_text("utf-8")
    described = set(re.findall(r"^\.\. [\w:]+:: (vlcore\S*)$", reference, re.MULTILINE))
    for name in public_names(module) - {"__version__"}:
        home = getattr(getattr(vlcore, name, None), "__module__", "")  # of an exception
        assert {f"{module}.{name}", module, home} & described, f"{module}.{name}"


def test_the_page_promises_the_package_itself_and_no_internal_module() -> None:
    assert public_modules()[0] == "vlcore"
    assert len(public_modules()) == len(set(public_modules())) > 5
    assert not any("._" in module for module in public_modules())


# -- who is held to it


@pytest.mark.parametrize("path", PACKAGES, ids=relative)
def test_plugins_and_examples_use_public_names(path: Path) -> None:
    assert internal_names_in_code(path.read_text("utf-8")) == []


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_code_of_a_page_uses_public_names(block: Block) -> None:
    assert internal_names_in_code(block.text) == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_the_words_of_a_page_name_public_names(page: Path) -> None:
    if page != INTERNALS:
        assert internal_names_in_prose(page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_a_page_names_no_internal_class(page: Path) -> None:
    if page != INTERNALS:
        named = re.findall(r"`([A-Z]\w+)(?:[.(][^`]*)?`", page.read_text("utf-8"))
        assert set(named) & internal_classes() == set()


@pytest.mark.parametrize("name", NEW_PACKAGE)
def test_a_new_package_uses_public_names(name: str) -> None:
    text = NEW_PACKAGE[name]
    internal = internal_names_in_code(text) if name.endswith(".py") else []
    assert [*internal, *internal_names_in_prose(text)] == []


def test_there_is_something_of_every_kind() -> None:
    folders = {path.relative_to(ROOT).parts[:2] for path in PACKAGES}
    assert {first for first, _ in folders} == {"plugins", "examples"}
    assert len(folders) > 3
    assert len(BLOCKS) > 20
    assert {"README.md", "docs/plugins.md", "docs/zh/tutorial.md"} <= set(map(relative, PAGES))
    assert len(internal_classes()) > 100


@cache
def internal_classes() -> set[str]:
    """The classes of vlcore that are not public."""
    sources = sorted(Path(vlcore.__file__).parent.rglob("*.py"))
    trees = [ast.parse(path.read_text("utf-8")) for path in sources]
    defined = {
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    }
    return defined - {name for module in public_modules() for name in public_names(module)}


# -- the measure itself


@pytest.mark.parametrize(
    "source",
    [
        "from vlcore import pipeline",
        "from vlcore.clip import ClipTower as Encoder",
        "from vlcore import clip\nclip.ClipTower",
        "from vlcore import testing as kit\nkit.CHECKS",
        "import vlcore\nvlcore.pipeline('x').engine.stats()",
        "import vlcore\nvlcore.clip.ClipTower.forward",
        "import vlcore.clip\nvlcore.clip.ClipTower\nvlcore.pipeline",
        "import vlcore.clip as clip\nclip.ClipTower",
        "from mypackage.vlcore import anything",
        "from .vlcore import anything",
        "group = 'vlcore.architectures'",
        "text = 'a sentence about vlcore.nothing at all'",
    ],
)
def test_public_names_are_let_through(source: str) -> None:
    assert internal_names_in_code(source) == []


@pytest.mark.parametrize(
    ("source", "internal"),
    [
        ("from vlcore.clip.images import Size", "vlcore.clip.images"),
        ("from vlcore.media import load_image", "vlcore.media"),
        ("from vlcore import _loop", "vlcore._loop"),
        ("from vlcore import media", "vlcore.media"),
        ("from vlcore import *", "vlcore.*"),
        ("from vlcore.clip import torch", "vlcore.clip.torch"),
        ("from vlcore.settings import Any", "vlcore.settings.Any"),
        ("import vlcore.media", "vlcore.media"),
        ("import vlcore.media as m", "vlcore.media"),
        ("import vlcore\nvlcore.media.load_image", "vlcore.media.load_image"),
        ("import vlcore as v\nv.media", "vlcore.media"),
        ("from vlcore import clip\nclip.images", "vlcore.clip.images"),
        ("import vlcore.clip as c\nc.images.Size", "vlcore.clip.images.Size"),
        ("def f():\n    from vlcore.media import load_image", "vlcore.media"),
        ("from importlib import import_module\nimport_module('vlcore.media')", "vlcore.media"),
        ("monkeypatch.setattr('vlcore.media.load_image', None)", "vlcore.media.load_image"),
    ],
)
def test_internal_names_are_seen(source: str, internal: str) -> None:
    assert internal in internal_names_in_code(source)


def test_prose_is_read_too() -> None:
    text = "See `vlcore.media.load_image`, `vlcore.load_image()` and the group `vlcore.serves`."
    assert internal_names_in_prose(text) == ["vlcore.media.load_image"]


def test_attributes_of_public_names_are_public() -> None:
    assert is_public("vlcore.Checkpoint.load_module")
    assert not is_public("vlcore.checkpoint.Checkpoint")
    assert not is_public("elsewhere.Checkpoint")
