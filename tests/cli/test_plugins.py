from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_llava
from distributions import Site, make_site, plugin_source
from typer.testing import CliRunner
from waits import TIMEOUT_S

import vlcore
from vlcore.cli import app


def test_the_table_lists_what_is_installed() -> None:
    result = CliRunner().invoke(app, ["plugins"])
    assert result.exit_code == 0
    for word in ("vl-plugin-llava", "ready", "LlavaLlamaForCausalLM"):
        assert word in result.stdout


def test_json() -> None:
    listed = json.loads(CliRunner().invoke(app, ["plugins", "--json"]).stdout)
    (llava,) = [entry for entry in listed if entry["distribution"] == "vl-plugin-llava"]
    assert llava["state"] == "ready"
    assert llava["reason"] == ""
    assert "LlavaNextForConditionalGeneration" in llava["architectures"]


def test_load_imports_them() -> None:
    result = CliRunner().invoke(app, ["plugins", "--load", "--json"])
    assert {entry["state"] for entry in json.loads(result.stdout)} == {"ready"}


def test_none_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlcore.plugins.metadata.installed_plugins", list)
    assert "no plugins are installed" in CliRunner().invoke(app, ["plugins"]).stdout


def test_a_reason_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLCORE_BLOCK_PLUGINS", "vl_plugin_llava")
    result = CliRunner().invoke(app, ["plugins"])
    assert "blocked" in result.stdout
    assert "named in VLCORE_BLOCK_PLUGINS" in result.stdout


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path / "site", monkeypatch)


def listed(*arguments: str) -> dict[str, dict[str, Any]]:
    output = CliRunner().invoke(app, ["plugins", "--json", *arguments]).stdout
    return {entry["distribution"]: entry for entry in json.loads(output)}


def test_plugins_that_share_a_name_are_reported(site: Site) -> None:
    site.install("vl-plugin-first", ["MadeUpForTests", "FirstAlone"])
    site.install("vl-plugin-second", ["MadeUpForTests"])
    assert listed()["vl-plugin-first"]["shared_with"] == {"MadeUpForTests": ["vl-plugin-second"]}
    assert "MadeUpForTests  also vl-plugin-first" in CliRunner().invoke(app, ["plugins"]).stdout


def test_the_requirement_of_a_plugin_is_shown(site: Site) -> None:
    site.install("vl-plugin-later", ["MadeUpForTests"], requires=["vlcore>=99"])
    entry = listed()["vl-plugin-later"]
    assert (entry["state"], entry["requires_vlcore"]) == ("incompatible", ">=99")
    assert "requires vlcore>=99" in CliRunner().invoke(app, ["plugins"]).stdout.replace("\n", " ")


def test_import_times_are_shown_on_request(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install("vl-plugin-slow", ["MadeUpForTests"])
    assert listed()["vl-plugin-slow"]["import_ms"] is None
    seconds = itertools.count(start=10.0, step=0.25)
    monkeypatch.setattr("vlcore.plugins.registry.time.perf_counter", lambda: next(seconds))
    assert listed("--load")["vl-plugin-slow"]["import_ms"] == 250
    table = CliRunner().invoke(app, ["plugins", "--load"]).stdout
    assert "import" in table.splitlines()[0]
    assert " ms " in table


def test_names_are_shown_as_they_are(site: Site) -> None:
    site.install("vl-plugin-odd", ["MadeUpForTests", "x[bold]y"])
    assert "x[bold]y" in CliRunner().invoke(app, ["plugins"]).stdout.replace("\n", "")


BAD: dict[str, tuple[list[str], str]] = {
    "no-module": (["MadeUpForTests"], "import a_module_that_does_not_exist"),
    "exits": (["MadeUpForTests"], "raise SystemExit(3)"),
    "prints": (["MadeUpForTests"], "print('[{]')\n" + plugin_source(match="return 'no'")),
    "misspelt": (["MadeUpForTests"], plugin_source().replace("def vl_match", "def vl_macth")),
    "arguments": (["MadeUpForTests"], plugin_source().replace("(config)", "(configuration)")),
    "none": (["MadeUpForTests"], plugin_source(match="return None")),
    "hangs": (["HangsForTests"], plugin_source(match="while True: pass")),
    "no-name": (["not a class"], plugin_source()),
}


@pytest.mark.slow
def test_no_bad_plugin_breaks_a_command_or_another_model(site: Site, tmp_path: Path) -> None:
    """All of them at once, in fresh processes, as a user has them."""
    for name, (architectures, source) in BAD.items():
        site.install(f"vl-plugin-bad-{name}", architectures, source)
    same = site.install("vl-plugin-bad-same", ["MadeUpForTests"])
    missing = site.install("vl-plugin-bad-missing", ["MadeUpForTests"])
    second = site.install("vl-plugin-bad-duplicate", [])
    points = next((site.root / second).glob("*.dist-info")) / "entry_points.txt"
    points.write_text(f"[vlcore.architectures]\nMadeUpForTests = {same}\n")
    (site.root / missing / f"{missing}.py").unlink()
    path = os.pathsep.join(str(folder) for folder in site.root.iterdir())

    def vlcore_command(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "vlcore", *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=os.environ | {"PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "plugins" in vlcore_command("--help")
    assert "vl-plugin-bad-exits" in vlcore_command("plugins")
    found = {
        entry["distribution"].removeprefix("vl-plugin-"): entry["state"]
        for entry in json.loads(vlcore_command("plugins", "--load", "--json"))
    }
    bad = {name: state for name, state in found.items() if name.startswith("bad-")}
    assert {found[name] for name in found.keys() - bad} == {"ready"}
    assert bad == {
        "bad-no-module": "broken",
        "bad-missing": "broken",
        "bad-exits": "broken",
        "bad-prints": "ready",
        "bad-misspelt": "broken",
        "bad-arguments": "broken",
        "bad-none": "ready",
        "bad-hangs": "ready",
        "bad-no-name": "broken",
        "bad-same": "conflict",
        "bad-duplicate": "conflict",
    }
    model = write_llava(tmp_path / "model")
    explained = json.loads(vlcore_command("explain", model, "What is this?", "--json"))
    assert explained["plugin"] == "vl-plugin-llava"


@pytest.mark.parametrize("command", [["-m", "vlcore", "--version"]])
def test_the_module_is_the_command(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert done.stdout == f"vlcore {vlcore.__version__}\n"


@pytest.mark.slow
def test_an_error_is_one_message_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlcore", "chat", "./nowhere", "Hello"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no directory './nowhere'")
    assert "Traceback" not in done.stderr
