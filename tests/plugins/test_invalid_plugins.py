from __future__ import annotations

from typing import Any

import pytest
from distributions import Site, plugin_source
from made_up_model import ARCHITECTURES, CONFIG, info_of

from vlcore._version import __version__
from vlcore.errors import (
    IncompatiblePluginError,
    NoPluginError,
    PluginConflictError,
    PluginContractError,
)
from vlcore.plugins import metadata
from vlcore.plugins.registry import (
    PluginState,
    find_plugin,
    load_plugin,
)

# -- invalid entry points


@pytest.mark.parametrize("name", ["made-up", "Made Up", "7B", "class", "ünïcode!", "a.b"])
def test_an_invalid_class_name_is_ignored_with_a_warning(site: Site, name: str) -> None:
    module = site.install("vl-plugin-odd", [name, *ARCHITECTURES])
    info = info_of("vl-plugin-odd")
    assert info.modules == {"MadeUpForTests": module}
    assert info.state is PluginState.READY
    assert info.warnings == (f"its entry point {name!r} is ignored: it is not a valid class name",)
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-odd"


def test_a_plugin_without_a_valid_name_is_broken(site: Site) -> None:
    site.install("vl-plugin-odd", ["made-up"])
    info = info_of("vl-plugin-odd")
    assert (info.state, info.architectures) == (PluginState.BROKEN, ())
    assert load_plugin(info) == info
    assert "registers no valid architecture" in info.reason


def test_a_checkpoint_may_have_such_a_name(site: Site) -> None:
    site.install("vl-plugin-odd", ["made-up"])
    with pytest.raises(NoPluginError, match="no installed plugin serves this made-up checkpoint"):
        find_plugin({"architectures": ["made-up"]})


def test_one_name_registered_twice_by_one_distribution(site: Site) -> None:
    first = site.install("vl-plugin-twice", ARCHITECTURES)
    entry_points = next((site.root / first).glob("*.dist-info")) / "entry_points.txt"
    with entry_points.open("a") as file:
        file.write("MadeUpForTests = elsewhere\n")
    info = info_of("vl-plugin-twice")
    assert info.modules == {"MadeUpForTests": first}
    (warning,) = info.warnings
    assert f"MadeUpForTests is registered twice: {first!r} is used, 'elsewhere' is ign" in warning
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-twice"


def install_same(site: Site, *names: str) -> str:
    """Install distributions with one and the same entry point."""
    module = site.install(names[0], ARCHITECTURES)
    for name in names[1:]:
        copied = site.install(name, [])
        info = next((site.root / copied).glob("*.dist-info"))
        text = f"[vlcore.architectures]\nMadeUpForTests = {module}\n"
        (info / "entry_points.txt").write_text(text)
    return module


def test_two_distributions_with_the_same_entry_point_are_in_conflict(site: Site) -> None:
    module = install_same(site, "vl-plugin-first", "vl-plugin-second")
    first, second = info_of("vl-plugin-first"), info_of("vl-plugin-second")
    assert first.state is second.state is PluginState.CONFLICT
    assert first.reason.startswith(f"vl-plugin-second registers the same module {module!r}: ")
    assert second.reason.startswith(f"vl-plugin-first registers the same module {module!r}: ")
    assert "VLCORE_BLOCK_PLUGINS=vl-plugin-first" in second.reason
    assert load_plugin(first).state is PluginState.CONFLICT
    with pytest.raises(PluginConflictError, match=r"vl-plugin-first .* and vl-plugin-second"):
        find_plugin(CONFIG)
    chosen = find_plugin(CONFIG, plugin="vl-plugin-second")
    assert chosen.info.distribution == "vl-plugin-second"


def test_a_conflict_ends_if_one_plugin_is_blocked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_same(site, "vl-plugin-first", "vl-plugin-second")
    monkeypatch.setenv("VLCORE_BLOCK_PLUGINS", "vl-plugin-first")
    assert info_of("vl-plugin-second").state is PluginState.READY
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-second"


def test_a_name_that_two_families_share_is_not_a_conflict(site: Site) -> None:
    site.install("vl-plugin-first", ["MadeUpForTests", "FirstAlone"])
    site.install("vl-plugin-second", ARCHITECTURES)
    found = [info_of(f"vl-plugin-{name}") for name in ("first", "second")]
    assert {info.state for info in found} == {PluginState.READY}
    shared = metadata.shared_architectures(found)
    assert shared == {"MadeUpForTests": ("vl-plugin-first", "vl-plugin-second")}


# -- plugins for another vlcore


@pytest.mark.parametrize("requirement", ["vlcore>=99", "VLCORE==0.0.1", "vlcore!=" + __version__])
def test_a_plugin_for_another_vlcore_is_never_imported(site: Site, requirement: str) -> None:
    site.install("vl-plugin-later", ARCHITECTURES, requires=["numpy", requirement])
    info = info_of("vl-plugin-later")
    assert info.state is PluginState.INCOMPATIBLE
    assert f"vlcore {__version__} is installed" in info.reason
    assert requirement.lower() == f"vlcore{info.requires}"
    with pytest.raises(IncompatiblePluginError, match=r"vl-plugin-later 1\.0 is incompatible"):
        find_plugin(CONFIG)
    site.install("vl-plugin-sound", ARCHITECTURES)
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-sound"
    assert site.imported() == [site.modules[1]]


@pytest.mark.parametrize(
    "requirement",
    [
        f"vlcore=={__version__}",
        "vlcore",
        "vlcore>=0.1.dev0",
        'vlcore>=99; python_version < "3"',
        'vlcore>=99; extra == "dev"',
        "vlcore-something-else>=99",
    ],
)
def test_a_requirement_that_is_met_is_accepted(site: Site, requirement: str) -> None:
    site.install("vl-plugin-first", ARCHITECTURES, requires=[requirement])
    assert info_of("vl-plugin-first").state is PluginState.READY


@pytest.mark.parametrize("version", ["0.2.0rc1", "0.2.0.dev3"])
def test_a_prerelease_of_vlcore_is_accepted(
    site: Site, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(metadata, "__version__", version)
    site.install("vl-plugin-first", ARCHITECTURES, requires=["vlcore>=0.1,<0.3"])
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-first"


def test_a_malformed_requirement_is_reported(site: Site) -> None:
    site.install("vl-plugin-first", ARCHITECTURES, requires=["vlcore >>> 1"])
    info = info_of("vl-plugin-first")
    assert info.state is PluginState.INCOMPATIBLE
    assert "'vlcore >>> 1' is malformed" in info.reason


# -- plugins that violate the contract


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("def vl_language_model", "def vl_langauge_model"), "vl_langauge_model"),
        (
            ("@hookimpl\ndef vl_language_model", "def vl_language_model"),
            "lacks the hook.s. vl_lang",
        ),
        (("(checkpoint, name)", "(checkpoint, title)"), "title"),
        (("@hookimpl", ""), "lacks the hook.s. vl_match, vl_vision_model, vl_chat_template, vl_l"),
    ],
)
def test_hooks_that_do_not_match_are_named(
    site: Site, change: tuple[str, str], message: str
) -> None:
    site.install("vl-plugin-odd", ARCHITECTURES, plugin_source().replace(*change))
    with pytest.raises(PluginContractError, match=message) as caught:
        find_plugin(CONFIG)
    assert "vl-plugin-odd 1.0" in str(caught.value)


def test_the_other_plugin_serves_if_hooks_do_not_match(site: Site) -> None:
    site.install("vl-plugin-odd", ARCHITECTURES, "")
    site.install("vl-plugin-sound", ARCHITECTURES)
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-sound"
    assert info_of("vl-plugin-odd").state is PluginState.BROKEN


def test_plugins_do_not_share_a_manager(site: Site) -> None:
    site.install("vl-plugin-first", ARCHITECTURES, plugin_source(language="return 1"))
    site.install("vl-plugin-second", ARCHITECTURES, plugin_source(language="return 2"))
    found = [find_plugin(CONFIG, plugin=f"vl-plugin-{name}") for name in ("first", "second")]
    checkpoint: Any = None
    assert [plugin.language_model(checkpoint) for plugin in found] == [1, 2]
