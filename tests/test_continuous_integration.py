"""Workflows, templates and hooks run commands that exist, with the fewest permissions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github" / "actions").glob("*/action.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
DISTRIBUTIONS = [
    ROOT / "pyproject.toml",
    *sorted(ROOT.glob("plugins/*/pyproject.toml")),
    *sorted(ROOT.glob("examples/*/pyproject.toml")),
]
CI = ROOT / ".github" / "workflows" / "ci.yml"


def read(path: Path) -> Any:
    # BaseLoader keeps the key `on` a string, which YAML 1.1 reads as true. It builds only strings,
    # lists and mappings, so it is as safe as SafeLoader.
    return yaml.load(path.read_text("utf-8"), Loader=yaml.BaseLoader)  # noqa: S506


def steps(document: Any) -> Iterator[Any]:
    """Yield the steps of a workflow or of a composite action."""
    for job in document.get("jobs", {"action": document.get("runs", {})}).values():
        yield from job["steps"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_unless_a_job_asks_for_more(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "group" in workflow["concurrency"]
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())
    assert "secrets." not in path.read_text("utf-8")
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] == "false"


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: path.parent.name)
def test_every_action_is_pinned_to_a_major_version(path: Path) -> None:
    used = [step["uses"] for step in steps(read(path)) if "uses" in step]
    assert used
    for action in used:
        if action.startswith("./"):
            assert (ROOT / action / "action.yml").is_file()
        else:
            assert re.search(r"@(?:v\d+(\.\d+)*|release/v\d+|[0-9a-f]{40})$", action), action


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=lambda path: path.parent.name)
def test_every_command_is_one_that_a_contributor_can_run(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    commands = "\n".join(step.get("run", "") for step in steps(read(path)))
    for target in re.findall(r"\bmake ([a-z-]+)", commands):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for script in re.findall(r"\bscripts/\w+\.py", commands):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize(
    "page", ["CONTRIBUTING.md", "RELEASING.md", ".github/pull_request_template.md"]
)
def test_every_make_target_of_a_page_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"(?:`|^ *)make ([a-z-]+)", (ROOT / page).read_text("utf-8"), re.M)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_tests_run_on_every_python_that_the_package_names() -> None:
    versions = read(CI)["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = [re.search(r"Python :: (3\.\d+)$", text) for text in project["classifiers"]]
    assert versions == [found[1] for found in named if found]


@pytest.mark.parametrize("path", DISTRIBUTIONS, ids=lambda path: path.parent.name)
def test_every_package_names_its_authors_and_addresses(path: Path) -> None:
    project = tomllib.loads(path.read_text("utf-8"))["project"]
    assert project["authors"] == [{"name": "The vlcore authors"}]
    assert set(project["urls"]) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    for address in project["urls"].values():
        assert address.startswith("https://github.com/vlcore/vlcore")
        found = re.search(r"/(?:blob|tree)/main/(.+)", address)
        assert found is None or (ROOT / found[1]).exists(), address


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_every_issue_form_can_be_read(path: Path) -> None:
    form = read(path)
    if path.stem == "config":
        assert form["contact_links"]
        return
    assert form["name"]
    assert form["description"]
    named = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(named) == len(set(named)) > 0


def test_the_hooks_need_only_the_environment_of_the_project() -> None:
    config = ROOT / ".pre-commit-config.yaml"
    checked = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", config],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
    for repository in read(config)["repos"]:
        assert repository["repo"] == "local"
        assert {hook["language"] for hook in repository["hooks"]} == {"system"}
