from __future__ import annotations

import logging

import pytest
from distributions import Site, plugin_source
from made_up_model import ARCHITECTURES, CONFIG, REFUSES, info_of

from vlcore.errors import (
    PluginImportError,
)
from vlcore.plugins.registry import (
    PluginState,
    find_plugin,
    installed_plugins,
    load_plugin,
)


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
