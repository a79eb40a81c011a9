from __future__ import annotations

import re
from typing import Any

import pytest
from distributions import Site
from made_up_model import ARCHITECTURES, CONFIG, REFUSES, info_of
from packaging.utils import canonicalize_name

from vlcore.errors import (
    NoPluginError,
    PluginImportError,
)
from vlcore.plugins.registry import (
    PluginInfo,
    PluginState,
    find_plugin,
    installed_plugins,
)

# -- listing


def test_listing_reads_metadata_and_imports_nothing(site: Site) -> None:
    first = site.install("vl-plugin-first", ["MadeUpForTests", "AlsoMadeUp"], version="1.2")
    site.install("vl-plugin-second", ["MadeUpForTests"], "raise RuntimeError")
    assert info_of("vl-plugin-first") == PluginInfo(
        "vl-plugin-first",
        "1.2",
        {"MadeUpForTests": first, "AlsoMadeUp": first},
        PluginState.READY,
    )
    assert info_of("vl-plugin-first").architectures == ("AlsoMadeUp", "MadeUpForTests")
    assert info_of("vl-plugin-second").state is PluginState.READY
    assert site.imported() == []


def test_listing_is_sorted_by_name(site: Site) -> None:
    for name in ("vl-plugin-b", "vl_plugin_c", "VL-plugin-a"):
        site.install(name, ARCHITECTURES)
    names = [canonicalize_name(info.distribution) for info in installed_plugins()]
    assert names == sorted(names)
    assert {"vl-plugin-a", "vl-plugin-b", "vl-plugin-c"} <= set(names)


def test_a_distribution_without_plugins_is_not_listed(site: Site) -> None:
    site.install("not-a-plugin", [])
    assert "not-a-plugin" not in {info.distribution for info in installed_plugins()}


@pytest.mark.parametrize(
    "damage",
    [
        {"METADATA": None},
        {"METADATA": ""},
        {"METADATA": "Name: damaged\n"},
        {"METADATA": "Version: 1\n"},
        {"METADATA": b"\xff\xfe\x00"},
        {"entry_points.txt": "[vlcore.architectures\nnonsense"},
        {"entry_points.txt": b"\xff\xfe\x00"},
        {"entry_points.txt": "[vlcore.architectures]\nMadeUpForTests = not a module!"},
    ],
    ids=str,
)
def test_a_damaged_distribution_does_not_hide_others(site: Site, damage: dict[str, Any]) -> None:
    damaged = site.install("damaged", ARCHITECTURES, REFUSES)
    site.install("vl-plugin-sound", ARCHITECTURES)
    info = next((site.root / damaged).glob("*.dist-info"))
    for filename, content in damage.items():
        (info / filename).unlink()
        if content is not None:
            (info / filename).write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )
    assert info_of("vl-plugin-sound").state is PluginState.READY
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-sound"


def test_the_first_of_two_installations_is_listed_as_in_imports(site: Site) -> None:
    site.install("vl-plugin-twice", ARCHITECTURES, version="1.0")
    site.install("vl_plugin.Twice", ARCHITECTURES, version="2.0")  # prepended, so it comes first
    (info,) = [
        info
        for info in installed_plugins()
        if canonicalize_name(info.distribution) == "vl-plugin-twice"
    ]
    assert info.version == "2.0"
    (warning,) = info.warnings
    assert re.search(r"version 2\.0 in .* is used, version 1\.0 in .* is ignored", warning)


def test_an_entry_point_may_name_an_attribute(site: Site) -> None:
    module = site.install("vl-plugin-object", ARCHITECTURES)
    entry_points = next((site.root / module).glob("*.dist-info")) / "entry_points.txt"
    entry_points.write_text(f"[vlcore.architectures]\nMadeUpForTests = inner_{module}:hooks\n")
    (site.root / module / f"inner_{module}.py").write_text(f"import {module} as hooks\n")
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-object"
    entry_points.write_text(f"[vlcore.architectures]\nMadeUpForTests = inner_{module}:absent\n")
    with pytest.raises(PluginImportError, match="AttributeError"):
        find_plugin(CONFIG)


# -- allow and block lists


def test_a_blocked_plugin_is_listed_and_never_imported(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("vl-plugin-first", ARCHITECTURES)
    site.install("vl-plugin-second", ARCHITECTURES)
    monkeypatch.setenv("VLCORE_BLOCK_PLUGINS", "something-else, VL_Plugin.First")
    assert info_of("vl-plugin-first").state is PluginState.BLOCKED
    assert info_of("vl-plugin-first").reason == "named in VLCORE_BLOCK_PLUGINS"
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-second"
    assert site.imported() == [site.modules[1]]


def test_only_an_allowed_plugin_is_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("vl-plugin-first", ARCHITECTURES)
    site.install("vl-plugin-second", ARCHITECTURES)
    monkeypatch.setenv("VLCORE_ALLOW_PLUGINS", "vl-plugin-first")
    assert info_of("vl-plugin-second").state is PluginState.BLOCKED
    assert info_of("vl-plugin-second").reason == "not in VLCORE_ALLOW_PLUGINS"
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-first"
    assert site.imported() == [site.modules[0]]


def test_blocking_takes_precedence_over_allowing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.install("vl-plugin-first", ARCHITECTURES)
    monkeypatch.setenv("VLCORE_ALLOW_PLUGINS", "vl-plugin-first")
    monkeypatch.setenv("VLCORE_BLOCK_PLUGINS", "vl-plugin-first")
    with pytest.raises(
        NoPluginError, match=r"vl-plugin-first 1\.0 is blocked: named in VLCORE_BLO"
    ):
        find_plugin(CONFIG)


def test_empty_lists_are_ignored(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("vl-plugin-first", ARCHITECTURES)
    monkeypatch.setenv("VLCORE_ALLOW_PLUGINS", "")
    monkeypatch.setenv("VLCORE_BLOCK_PLUGINS", "")
    assert info_of("vl-plugin-first").state is PluginState.READY
