"""Generic plugins, which serve a checkpoint only where no other installed plugin does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributions import Site, make_site, plugin_source
from typer.testing import CliRunner

from vlcore.cli import app
from vlcore.errors import NoPluginError, PluginConflictError
from vlcore.plugins import PluginInfo, PluginState, find_plugin, installed_plugins

CONFIG: dict[str, Any] = {"architectures": ["MadeUpForTests"]}
NAMES = ("MadeUpForTests",)
REFUSES = plugin_source(match='return "its gadget is unknown"')


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("COLUMNS", "200")
    yield from make_site(tmp_path, monkeypatch)


def info_of(distribution: str) -> PluginInfo:
    return next(info for info in installed_plugins() if info.distribution == distribution)


def test_the_metadata_states_that_a_plugin_is_generic(site: Site) -> None:
    site.install("vl-plugin-generic", ["Special"], generic=["MadeUpForTests", "AlsoMadeUp"])
    info = info_of("vl-plugin-generic")
    assert info.architectures == ("AlsoMadeUp", "MadeUpForTests", "Special")
    assert info.generic_architectures == {"AlsoMadeUp", "MadeUpForTests"}
    assert info.state is PluginState.READY
    assert site.imported() == []


def test_a_name_in_both_groups_is_not_generic(site: Site) -> None:
    site.install("vl-plugin-both", NAMES, generic=NAMES)
    info = info_of("vl-plugin-both")
    assert info.generic_architectures == frozenset()
    assert "registered twice" in info.warnings[0]


@pytest.mark.parametrize("first", ["vl-plugin-a", "vl-plugin-z"])
def test_a_generic_plugin_is_not_even_imported_where_another_plugin_matches(
    site: Site, first: str
) -> None:
    site.install("vl-plugin-m", [], generic=NAMES)
    own = site.install(first, NAMES)
    assert find_plugin(CONFIG).info.distribution == first
    assert site.imported() == [own]


@pytest.mark.parametrize(
    "other", [REFUSES, "raise RuntimeError", ""], ids=["refuses", "raises", "no hooks"]
)
def test_a_generic_plugin_serves_what_other_plugins_do_not(site: Site, other: str) -> None:
    site.install("vl-plugin-generic", [], generic=NAMES)
    site.install("vl-plugin-other", NAMES, other)
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-generic"


def test_a_generic_plugin_can_be_chosen(site: Site) -> None:
    site.install("vl-plugin-generic", [], generic=NAMES)
    site.install("vl-plugin-own", NAMES)
    chosen = find_plugin(CONFIG, plugin="vl-plugin-generic")
    assert chosen.info.distribution == "vl-plugin-generic"


def test_a_plugin_is_generic_for_some_names_only(site: Site) -> None:
    site.install("vl-plugin-own", NAMES)
    site.install("vl-plugin-wide", ["Special"], generic=NAMES)
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-own"
    both = {"architectures": ["MadeUpForTests", "Special"]}
    with pytest.raises(PluginConflictError):
        find_plugin(both)


def test_two_generic_plugins_are_in_conflict(site: Site) -> None:
    site.install("vl-plugin-wide", [], generic=NAMES)
    site.install("vl-plugin-wider", [], generic=NAMES)
    with pytest.raises(PluginConflictError, match=r"vl-plugin-wide .* and vl-plugin-wider"):
        find_plugin(CONFIG)


def test_the_reasons_of_all_plugins_are_given(site: Site) -> None:
    site.install("vl-plugin-generic", [], plugin_source(match='return "too odd"'), generic=NAMES)
    site.install("vl-plugin-own", NAMES, REFUSES)
    with pytest.raises(NoPluginError, match=r"(?s)its gadget is unknown.*too odd"):
        find_plugin(CONFIG)


def test_the_architectures_of_a_generic_plugin_are_counted_in_the_table(site: Site) -> None:
    names = [f"Model{number}ForTests" for number in range(60)]
    site.install("vl-plugin-wide", ["Special"], generic=[*names, *NAMES])
    site.install("vl-plugin-own", NAMES)
    shown = CliRunner().invoke(app, ["plugins"]).stdout
    assert "61 architectures, where no other plugin serves the checkpoint" in shown
    assert "MadeUpForTests  also vl-plugin-wide" in shown
    assert "Model7ForTests" not in shown
    (info,) = [
        info
        for info in json.loads(CliRunner().invoke(app, ["plugins", "--json"]).stdout)
        if info["distribution"] == "vl-plugin-wide"
    ]
    assert info["generic_architectures"] == sorted([*names, *NAMES])
    with pytest.raises(NoPluginError, match="serves Special, 61 architectures as a generic plugin"):
        find_plugin({"architectures": ["Unknown"]}, plugin="vl-plugin-wide")
