from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from distributions import Site, make_site, plugin_source
from packaging.utils import canonicalize_name

from vlcore._version import __version__
from vlcore.errors import (
    IncompatiblePluginError,
    NoPluginError,
    PluginConflictError,
    PluginContractError,
    PluginImportError,
)
from vlcore.plugins import metadata, registry
from vlcore.plugins.registry import (
    PluginInfo,
    PluginState,
    find_plugin,
    installed_plugins,
    load_plugin,
)

CONFIG: dict[str, Any] = {"architectures": ["MadeUpForTests"]}
ARCHITECTURES = ("MadeUpForTests",)
REFUSES = plugin_source(match='return "its gadget is unknown"')


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path, monkeypatch)


def info_of(distribution: str) -> PluginInfo:
    return next(info for info in installed_plugins() if info.distribution == distribution)


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


# -- one match


def test_a_single_match_is_found(site: Site) -> None:
    site.install("vl-plugin-first", ARCHITECTURES, plugin_source(match="return config['mine']"))
    other = site.install("vl-plugin-other", ["AnotherArchitecture"])
    assert find_plugin(CONFIG | {"mine": True}).info.distribution == "vl-plugin-first"
    assert other not in site.imported()


def test_a_plugin_that_shares_the_name_does_not_match(site: Site) -> None:
    site.install("vl-plugin-first", ARCHITECTURES, REFUSES)
    site.install("vl-plugin-second", ARCHITECTURES)
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-second"


def test_any_of_several_architectures_may_match(site: Site) -> None:
    site.install("vl-plugin-first", ARCHITECTURES)
    config = {"architectures": ["NobodysModel", "MadeUpForTests"]}
    assert find_plugin(config).info.distribution == "vl-plugin-first"


def test_the_hooks_get_the_arguments_that_they_declare(site: Site) -> None:
    source = plugin_source(
        vision="return (checkpoint, device, dtype)",
        template="return (checkpoint, name)",
        language="return [checkpoint]",
    )
    site.install("vl-plugin-first", ARCHITECTURES, source)
    plugin = find_plugin(CONFIG)
    arguments: Any = ("checkpoint", "device", "dtype")
    assert plugin.vision_model(*arguments) == arguments
    assert plugin.chat_template(arguments[0], "a name") == ("checkpoint", "a name")
    assert plugin.language_model(arguments[0]) == ["checkpoint"]


# -- no match


@pytest.mark.parametrize("names", [None, [], "MadeUpForTests", {"a": 1}, [1], ["A", None]])
def test_a_config_without_architectures_is_reported(names: object) -> None:
    config = {} if names is None else {"architectures": names}
    with pytest.raises(
        NoPluginError, match='must name the model class in "architectures"'
    ) as caught:
        find_plugin(config)
    assert f"it has {names!r}" in str(caught.value)


def test_an_unknown_architecture_lists_what_is_installed(site: Site) -> None:
    site.install("vl-plugin-first", ["AnotherArchitecture"])
    with pytest.raises(NoPluginError) as caught:
        find_plugin(CONFIG)
    message = str(caught.value)
    assert message.startswith("no installed plugin serves this MadeUpForTests checkpoint\n")
    assert "vlcore knows no package that does" in message
    assert "vl-plugin-first 1.0" in message.splitlines()[-1]


def test_the_package_known_to_serve_an_architecture_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [
        {"package": "vl-plugin-made-up", "serves": "Gadgets", "architectures": ["MadeUpForTests"]},
        {"package": "vl-plugin-first", "serves": "Other", "architectures": ["MadeUpForTests"]},
        {"package": "vl-plugin-no", "serves": "Else", "architectures": ["AnotherArchitecture"]},
    ]
    monkeypatch.setattr(registry, "_known_plugins", lambda: known)
    site.install("vl-plugin-first", ARCHITECTURES, REFUSES)
    with pytest.raises(NoPluginError) as caught:
        find_plugin(CONFIG)
    message = str(caught.value)
    assert "- pip install vl-plugin-made-up  (Gadgets)" in message
    assert "pip install vl-plugin-first" not in message
    assert "pip install vl-plugin-no" not in message


GADGETS: list[dict[str, Any]] = [
    {
        "package": "vl-plugin-round",
        "serves": "round gadgets",
        "architectures": ["MadeUpForTests"],
        "signs": {"shape": "^(round|oval)?$"},
    },
    {
        "package": "vl-plugin-square",
        "serves": "square gadgets",
        "architectures": ["MadeUpForTests"],
        "signs": {"shape": "^square$", "size": "."},
    },
    {"package": "vl-plugin-any", "serves": "gadgets", "architectures": ["MadeUpForTests"]},
]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shape": "oval"}, ["vl-plugin-round"]),
        ({}, ["vl-plugin-round"]),
        ({"shape": "square", "size": 3}, ["vl-plugin-square"]),
    ],
    ids=str,
)
def test_the_package_for_the_variant_is_named(
    site: Site, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: list[str]
) -> None:
    monkeypatch.setattr(registry, "_known_plugins", lambda: GADGETS)
    with pytest.raises(NoPluginError) as caught:
        find_plugin(CONFIG | change)
    message = str(caught.value)
    assert "packages known to serve this checkpoint, by its config.json:" in message
    assert re.findall(r"pip install (\S+)", message) == named


@pytest.mark.parametrize("change", [{"shape": "square"}, {"shape": "star"}, {"shape": None}])
def test_every_package_is_named_if_the_variant_is_unknown(
    site: Site, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(registry, "_known_plugins", lambda: GADGETS)
    with pytest.raises(NoPluginError) as caught:
        find_plugin(CONFIG | change)
    message = str(caught.value)
    assert "packages known to serve this architecture name:" in message
    assert re.findall(r"pip install (\S+)", message) == [entry["package"] for entry in GADGETS]


def test_another_variants_package_is_not_named_if_the_right_one_is_installed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_known_plugins", lambda: GADGETS)
    site.install("vl-plugin-round", ARCHITECTURES, REFUSES)
    with pytest.raises(NoPluginError) as caught:
        find_plugin(CONFIG | {"shape": "round"})
    assert "its gadget is unknown" in str(caught.value)
    assert "pip install" not in str(caught.value)


def test_the_known_packages_are_well_formed() -> None:
    text = resources.files("vlcore.plugins").joinpath("known_plugins.json").read_text("utf-8")
    packages: dict[str, set[str]] = {}
    for entry in json.loads(text):
        assert entry.keys() - {"signs"} == {"package", "serves", "architectures"}
        for pattern in entry.get("signs", {}).values():
            re.compile(pattern)
        for name in entry["architectures"]:
            packages.setdefault(name, set()).add(entry["package"])
    assert packages["LlavaLlamaForCausalLM"] >= {"vl-plugin-llava", "vl-plugin-yi"}
    assert packages["LlavaNextForConditionalGeneration"] == {
        "vl-plugin-llava",
        "vl-plugin-transformers",
    }
    assert packages["QWenLMHeadModel"] == {"vl-plugin-qwen"}


def test_each_candidates_reason_is_reported(site: Site) -> None:
    site.install("vl-plugin-first", ARCHITECTURES, REFUSES)
    site.install("vl-plugin-second", ARCHITECTURES, "raise RuntimeError('no such library')")
    with pytest.raises(NoPluginError) as caught:
        find_plugin(CONFIG)
    message = str(caught.value)
    assert "- vl-plugin-first 1.0 does not serve it: its gadget is unknown" in message
    assert "raised RuntimeError: no such library" in message
    assert isinstance(caught.value.__cause__, PluginImportError)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return None", "its vl_match returned None instead of True or a reason (str)"),
        ("return False", "its vl_match returned False instead of True or a reason (str)"),
        ("return 1", "its vl_match returned 1 instead of True or a reason (str)"),
        ("return ''", "its vl_match returned '' instead of True or a reason (str)"),
        ("return config['absent']", "its vl_match raised KeyError: 'absent'"),
        ("raise SystemExit(3)", "its vl_match raised SystemExit: 3"),
    ],
)
def test_an_invalid_result_of_vl_match_is_a_mismatch(site: Site, body: str, reason: str) -> None:
    site.install("vl-plugin-nonsense", ARCHITECTURES, plugin_source(match=body))
    with pytest.raises(NoPluginError) as caught:
        find_plugin(CONFIG)
    assert f"vl-plugin-nonsense 1.0 does not serve it: {reason}" in str(caught.value)
    site.install("vl-plugin-sound", ARCHITECTURES)
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-sound"


# -- several matches


def test_the_error_for_two_matches_says_how_to_choose(site: Site) -> None:
    site.install("vl-plugin-first", ARCHITECTURES)
    site.install("vl-plugin-second", ARCHITECTURES, version="2.1")
    with pytest.raises(PluginConflictError) as caught:
        find_plugin(CONFIG)
    message = str(caught.value)
    assert "vl-plugin-first 1.0 and vl-plugin-second 2.1 both serve this MadeUpForTests" in message
    assert "plugin='vl-plugin-first'" in message
    assert "--plugin vl-plugin-first" in message
    assert "VLCORE_BLOCK_PLUGINS" in message


@pytest.mark.parametrize("chosen", ["vl-plugin-second", "VL_plugin.second"])
def test_the_user_resolves_a_conflict(site: Site, chosen: str) -> None:
    site.install("vl-plugin-first", ARCHITECTURES)
    second = site.install("vl-plugin-second", ARCHITECTURES)
    assert find_plugin(CONFIG, plugin=chosen).info.distribution == "vl-plugin-second"
    assert site.imported() == [second]


def test_the_chosen_plugin_must_match_as_well(site: Site) -> None:
    site.install("vl-plugin-first", ARCHITECTURES)
    site.install("vl-plugin-second", ARCHITECTURES, REFUSES)
    with pytest.raises(NoPluginError, match=r"vl-plugin-second 1\.0 does not serve it: its gadget"):
        find_plugin(CONFIG, plugin="vl-plugin-second")


def test_choosing_a_plugin_that_is_not_installed(site: Site) -> None:
    site.install("vl-plugin-first", ARCHITECTURES)
    with pytest.raises(NoPluginError, match="'vl-plugin-none' is not installed: pip install vl-pl"):
        find_plugin(CONFIG, plugin="vl-plugin-none")


def test_choosing_a_plugin_for_other_architectures(site: Site) -> None:
    site.install("vl-plugin-first", ["AnotherArchitecture"])
    with pytest.raises(NoPluginError, match="serves AnotherArchitecture, not MadeUpForTests"):
        find_plugin(CONFIG, plugin="vl-plugin-first")


# -- plugins that cannot be imported


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise RuntimeError('broken')", RuntimeError),
        ("raise SystemExit('broken')", SystemExit),
        ("import a_module_that_does_not_exist", ModuleNotFoundError),
        ("def broken(:", SyntaxError),
    ],
)
def test_the_import_error_of_the_only_candidate_is_raised(
    site: Site, source: str, cause: type[BaseException]
) -> None:
    site.install("vl-plugin-broken", ARCHITECTURES, source)
    with pytest.raises(
        PluginImportError, match=r"vl-plugin-broken 1\.0 cannot be imported"
    ) as caught:
        find_plugin(CONFIG)
    assert isinstance(caught.value.__cause__, cause)
    assert cause.__name__ in str(caught.value)
    assert "VLCORE_BLOCK_PLUGINS=vl-plugin-broken" in str(caught.value)


@pytest.mark.parametrize("source", ["raise RuntimeError('broken')", "raise SystemExit"])
def test_the_other_plugin_serves_if_an_import_fails(
    site: Site, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.install("vl-plugin-broken", ARCHITECTURES, source)
    site.install("vl-plugin-sound", ARCHITECTURES)
    with caplog.at_level(logging.WARNING):
        assert find_plugin(CONFIG).info.distribution == "vl-plugin-sound"
    assert "vl-plugin-broken 1.0 cannot be imported" in caplog.text


def test_a_failed_import_does_not_affect_other_architectures(site: Site) -> None:
    broken = site.install("vl-plugin-broken", ["AnotherArchitecture"], "raise RuntimeError")
    site.install("vl-plugin-sound", ARCHITECTURES)
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-sound"
    assert broken not in site.imported()


def test_a_failed_import_is_recorded(site: Site) -> None:
    site.install("vl-plugin-broken", ARCHITECTURES, "raise RuntimeError('no such library')")
    assert info_of("vl-plugin-broken").state is PluginState.READY
    with pytest.raises(PluginImportError):
        find_plugin(CONFIG)
    assert info_of("vl-plugin-broken").state is PluginState.BROKEN
    assert "no such library" in info_of("vl-plugin-broken").reason


def test_load_plugin_returns_the_state_after_the_import(site: Site) -> None:
    sound = site.install("vl-plugin-sound", ARCHITECTURES)
    site.install("vl-plugin-broken", ARCHITECTURES, "raise SystemExit('no')")
    site.install("vl-plugin-later", ARCHITECTURES, requires=["vlcore>=99"])
    assert load_plugin(info_of("vl-plugin-sound")) == info_of("vl-plugin-sound")
    broken = load_plugin(info_of("vl-plugin-broken"))
    assert broken.state is PluginState.BROKEN
    assert "SystemExit: no" in broken.reason
    assert load_plugin(info_of("vl-plugin-later")).state is PluginState.INCOMPATIBLE
    assert site.imported() == [sound]


def test_the_output_of_an_import_goes_to_stderr(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install("vl-plugin-loud", ARCHITECTURES, "print('Welcome!')\n" + plugin_source())
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-loud"
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "Welcome!\n")


def test_loading_imports_only_the_candidates_of_its_architecture(site: Site) -> None:
    for number in range(200):
        site.install(f"vl-plugin-{number}", [f"MadeUp{number % 100}"], REFUSES)
    candidates = [site.modules[7], site.install("vl-plugin-mine", ["MadeUp7"]), site.modules[107]]
    assert len(installed_plugins()) > 200
    assert site.imported() == []
    assert find_plugin({"architectures": ["MadeUp7"]}).info.distribution == "vl-plugin-mine"
    assert sorted(site.imported()) == sorted(candidates)


def test_a_vl_match_that_never_returns_affects_only_its_architecture(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing interrupts a hook, so this one would hang the test if it were called."""
    site.install("vl-plugin-hangs", ["AnotherArchitecture"], plugin_source(match="while 1: pass"))
    site.install("vl-plugin-sound", ["AnotherArchitecture", *ARCHITECTURES])
    assert load_plugin(info_of("vl-plugin-hangs")).state is PluginState.READY
    assert find_plugin(CONFIG).info.distribution == "vl-plugin-sound"
    monkeypatch.setenv("VLCORE_BLOCK_PLUGINS", "vl-plugin-hangs")
    config = {"architectures": ["AnotherArchitecture"]}
    assert find_plugin(config).info.distribution == "vl-plugin-sound"


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
