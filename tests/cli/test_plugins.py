from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

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
    monkeypatch.setattr("vlcore.installed.installed_plugins", list)
    assert "no plugins are installed" in CliRunner().invoke(app, ["plugins"]).stdout


def test_a_reason_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLCORE_BLOCK_PLUGINS", "vl_plugin_llava")
    result = CliRunner().invoke(app, ["plugins"])
    assert "blocked" in result.stdout
    assert "named in VLCORE_BLOCK_PLUGINS" in result.stdout


@pytest.mark.parametrize("command", [["-m", "vlcore", "--version"]])
def test_the_module_is_the_command(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert done.stdout == f"vlcore {vlcore.__version__}\n"


def test_an_error_is_one_message_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlcore", "chat", "./nowhere", "Hello"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no directory './nowhere'")
    assert "Traceback" not in done.stderr
