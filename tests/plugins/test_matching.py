from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest
from distributions import Site, plugin_source
from made_up_model import ARCHITECTURES, CONFIG, REFUSES

from vlcore.errors import (
    NoPluginError,
    PluginConflictError,
    PluginImportError,
)
from vlcore.plugins import registry
from vlcore.plugins.registry import (
    find_plugin,
)

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
