"""Each attack in ``docs/security.md`` names tests that are there."""

from __future__ import annotations

import ast
import re

import pytest
from documents import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.partition("## Known attacks")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| attack ")
]
_TEST = re.compile(r"`([\w/-]+\.py)::(test_\w+)`")


def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_attack_is_met_and_covered_by_tests_that_exist(row: list[str]) -> None:
    attack, met, tests = row
    assert attack
    assert met
    named = _TEST.findall(tests)
    assert named, f"{attack}: no test is named"
    assert _TEST.sub("", tests).strip(", ") == ""
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert name in names_in(path), f"{path} has no {name}"


def test_the_table_is_read_whole() -> None:
    assert len(ROWS) > 30
    assert len({row[0] for row in ROWS}) == len(ROWS)


def test_the_policy_and_the_threat_model_lead_to_each_other() -> None:
    assert "](docs/security.md)" in (ROOT / "SECURITY.md").read_text("utf-8")
    assert "](../SECURITY.md)" in PAGE
