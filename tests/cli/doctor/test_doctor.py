from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from checkpoints import write_llava
from typer.testing import CliRunner

from vlcore.cli import app


def doctor(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.stdout


def test_the_report_of_an_installation() -> None:
    code, report = doctor()
    assert code == 0
    for words in ("✓  python", "packages", "torch", "lmdeploy", "vl-plugin-llava 0.1.0 is ready"):
        assert words in report


def test_the_report_of_a_model(tmp_path: Path) -> None:
    code, report = doctor(write_llava(tmp_path / "model"), "--device", "cpu")
    assert code == 0
    for words in ("served by", "vl-plugin-llava", "engine", "transformers, on cpu", "memory"):
        assert words in report


def test_json(tmp_path: Path) -> None:
    code, report = doctor(write_llava(tmp_path / "model"), "--device", "cpu", "--json")
    found = json.loads(report)
    assert (code, found["ok"]) == (0, True)
    (memory,) = [one for one in found["findings"] if one["topic"] == "memory"]
    assert memory["verdict"] == "fine"
    assert memory["facts"]["weight_bytes"] > 0


def test_what_does_not_work_ends_with_1() -> None:
    code, report = doctor("./nowhere", "--json")
    found = json.loads(report)
    assert (code, found["ok"]) == (1, False)
    assert [one["topic"] for one in found["findings"] if one["verdict"] == "problem"] == [
        "checkpoint"
    ]
    code, report = doctor("./nowhere")
    assert code == 1
    assert "✗  checkpoint" in report


def test_without_torch_the_rest_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, report = doctor("demo/tiny-llava", "--json")
    topics = [o["topic"] for o in json.loads(report)["findings"] if o["verdict"] == "problem"]
    assert code == 1
    assert topics == ["torch", "checkpoint"]
