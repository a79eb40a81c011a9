from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_yi
from typer.testing import CliRunner, Result

from vlcore import OptionError
from vlcore.cli import app
from vlcore.testing import CHECKS

QUICK = ("--only", "hooks", "--only", "match-own")


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yi(tmp_path_factory.mktemp("yi") / "model")


def test_a_package_alone() -> None:
    result = check("vl_plugin_yi")
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert lines[0] == "vl-plugin-yi 0.1.0"
    assert lines[2].startswith("✓  entry-point")
    number = sum(not one.needs_model for one in CHECKS)
    assert lines[-1] == f"{number} checks ran: {number} passed, 0 failed, 0 excused"


@pytest.mark.parametrize(
    "name", ["vl-plugin-llava", "vl-plugin-qwen", "vl-plugin-yi", "vl-plugin-idefics3"]
)
def test_the_projects_own_packages_pass(name: str) -> None:
    result = check(name)
    assert result.exit_code == 0, result.stdout


def test_a_model_is_checked_with_the_plugin_that_serves_it(model: Path) -> None:
    result = check(model, *QUICK)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"vl-plugin-yi 0.1.0 with {model}\n")


def test_a_package_with_a_model(model: Path) -> None:
    result = check("vl-plugin-llava", "--model", model, *QUICK)
    assert result.exit_code == 1
    assert "✗  match-own" in result.stdout
    assert "actual:   no match: its projector 'mlp2x_gelu_Norm' is Yi-VL's" in result.stdout
    assert "2 checks ran: 1 passed, 1 failed, 0 excused" in result.stdout


def test_a_model_with_a_plugin(model: Path) -> None:
    assert check(model, "--plugin", "vl-plugin-llava", *QUICK).exit_code == 1


def test_json(model: Path) -> None:
    result = check("vl-plugin-llava", "--model", model, *QUICK, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert [(one["name"], one["outcome"]) for one in report["checks"]] == [
        ("hooks", "passed"),
        ("match-own", "failed"),
    ]
    assert set(report["checks"][1]["failure"]) == {"expected", "actual", "where", "advice"}


def test_an_expected_failure_is_shown_with_its_reason(model: Path) -> None:
    result = check(
        "vl-plugin-llava", "--model", model, *QUICK, "--excuse", "match-own=not mine = fine"
    )
    assert result.exit_code == 0
    assert "match-own excused: not mine = fine" in result.stdout


def test_the_checks_are_listed() -> None:
    lines = check("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [one.name for one in CHECKS]
    listed = json.loads(check("--list", "--json").stdout)
    assert listed[0] == {
        "name": CHECKS[0].name,
        "about": CHECKS[0].about,
        "needs_model": False,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vl-plugin-none",), "'vl-plugin-none' is not an installed plugin (vl-plugin-"),
        (("vl-plugin-none", "--model", "x"), "'vl-plugin-none' is not an installed plugin"),
        (("vl-plugin-yi", "--plugin", "vl-plugin-yi"), "is a plugin: remove"),
        (("vl-plugin-yi", "--excuse", "hooks"), "hooks is excused without a reason"),
        (("vl-plugin-yi", "--only", "hook"), "there is no check named hook"),
    ],
)
def test_what_cannot_be_checked_is_an_error(arguments: tuple[str, ...], message: str) -> None:
    result = check(*arguments)
    assert isinstance(result.exception, OptionError)
    assert message in str(result.exception)


def test_without_a_target_the_usage_is_shown() -> None:
    result = check()
    assert result.exit_code == 2
    assert "expected an installed plugin or a model" in result.stderr


def test_the_help_needs_no_torch() -> None:
    program = (
        "import sys; from vlcore.cli import app; app(['check', '--help'], standalone_mode=False)"
    )
    program += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
