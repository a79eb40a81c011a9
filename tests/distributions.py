"""Made-up installed distributions, for tests of plugin discovery."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import indent

import pytest

HOOKS = """
from vlcore import hookimpl

@hookimpl
def vl_match(config):
{match}

@hookimpl
def vl_vision_model(checkpoint, device, dtype):
{vision}

@hookimpl
def vl_chat_template(checkpoint, name):
{template}

@hookimpl
def vl_language_model(checkpoint):
{language}
"""


def plugin_source(
    *,
    match: str = "return True",
    vision: str = "return None",
    template: str = "return None",
    language: str = "return None",
) -> str:
    """Write a plugin module from the bodies of its hooks."""
    bodies = {"match": match, "vision": vision, "template": template, "language": language}
    return HOOKS.format(**{hook: indent(body, "    ") for hook, body in bodies.items()})


class Site:
    """A place on ``sys.path`` where distributions are installed, each in a folder of its own."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.modules: list[str] = []
        self._monkeypatch = monkeypatch

    def install(
        self,
        name: str,
        architectures: Sequence[str],
        source: str | None = None,
        *,
        requires: Sequence[str] = (),
        serves: Sequence[str] = (),
        generic: Sequence[str] = (),
        version: str = "1.0",
    ) -> str:
        """Install a plugin distribution and give the name of its module.

        It is generic for the architectures in ``generic``.
        """
        source = plugin_source() if source is None else source
        module = f"{name.replace('-', '_')}_{len(self.modules)}"
        folder = self.root / module
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
        entry_points = ["[vlcore.serves]", *(f"{known} = {module}" for known in serves)]
        entry_points += ["[vlcore.architectures]"]
        entry_points += [f"{architecture} = {module}" for architecture in architectures]
        entry_points += ["[vlcore.generic]"]
        entry_points += [f"{architecture} = {module}" for architecture in generic]
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("\n".join(metadata) + "\n")
        (info / "entry_points.txt").write_text("\n".join(entry_points) + "\n")
        (folder / f"{module}.py").write_text(source)
        self.modules.append(module)
        self.add_to_path(folder)
        return module

    def add_to_path(self, folder: Path) -> None:
        """Make the modules and distributions of a folder importable until the test ends."""
        self._monkeypatch.syspath_prepend(folder)

    def imported(self) -> list[str]:
        """Which of the plugin modules have been imported."""
        return [module for module in self.modules if module in sys.modules]


def make_site(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Give a site; its modules are forgotten when the test is over."""
    monkeypatch.setattr("vlcore.plugins.metadata._import_failures", {})
    monkeypatch.delenv("VLCORE_ALLOW_PLUGINS", raising=False)
    monkeypatch.delenv("VLCORE_BLOCK_PLUGINS", raising=False)
    site = Site(root, monkeypatch)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)
