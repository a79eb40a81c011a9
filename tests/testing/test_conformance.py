"""The checks as tests of pytest, in a run of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from distributions import Site, make_site
from patchwork import NAME, install_patchwork, write_patchwork

import vlcore.testing
from vlcore import OptionError
from vlcore.testing import CHECKS, PluginConformance

TESTS = """
from vlcore.testing import PluginConformance
import pytest

@pytest.fixture
def checkpoint():
    return {checkpoint!r}

class TestPatchwork(PluginConformance):
    plugin = "vl-plugin-patchwork"
    excused = {excused}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    yield from make_site(tmp_path / "site", monkeypatch)


def run(tests: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_patchwork.py").write_text(tests)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            "-rfxs",
            *arguments,
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.slow
def test_every_check_is_a_test_and_the_end_lists_expected_failures(
    site: Site, tmp_path: Path
) -> None:
    install_patchwork(
        site,
        {"num_rows=rows * columns": "num_rows=9"},
        requires=(),
    )
    checkpoint = str(write_patchwork(tmp_path / "model"))
    excused = {"requires-vlcore": "never published", "rows-dtype": "no reason at all"}
    tests = TESTS.format(checkpoint=checkpoint, excused=excused)
    done = run(tests, tmp_path, "-k", "requires or rows or match")
    assert done.returncode == 1, done.stdout
    out = done.stdout
    for name in ("rows-announced", "rows-dtype"):
        assert f"FAILED test_patchwork.py::TestPatchwork::test_conformance[{name}]" in out
    assert "expected: num_rows=8, as many as forward returns" in out
    assert "do:       remove it from the expected failures" in out
    assert "Traceback" not in out
    assert (
        "TestPatchwork: 9 checks ran: 6 passed, 2 failed, 1 excused; 2 did not apply\n"
        "TestPatchwork: requires-vlcore excused: never published\n"
        "TestPatchwork: video-rows does not apply: the vision model takes no videos\n"
        "TestPatchwork: reference-rows does not apply: no reference file was given\n"
    ) in out
    number = len(CHECKS) - 11
    assert f"2 failed, 6 passed, 2 skipped, {number} deselected, 1 xfailed in" in out


def test_an_expected_failure_of_an_unknown_check_is_an_error_of_the_class() -> None:
    with pytest.raises(OptionError, match="there is no check named rows-shapes"):

        class TestSome(PluginConformance):
            excused: ClassVar[Mapping[str, str]] = {"rows-shapes": "why not"}


def test_an_expected_failure_without_a_reason_is_an_error_of_the_class() -> None:
    with pytest.raises(OptionError, match="rows-shape is excused without a reason"):

        class TestSome(PluginConformance):
            excused: ClassVar[Mapping[str, str]] = {"rows-shape": ""}


def test_an_unknown_known_model_is_an_error_of_the_class() -> None:
    with pytest.raises(OptionError, match="serves names Yi-VL"):

        class TestSome(PluginConformance):
            plugin = NAME
            serves = ("Yi-VL",)


WITHOUT_PYTEST = """
import sys
sys.modules["pytest"] = None
import vlcore.testing
assert "torch" not in sys.modules
try:
    vlcore.testing.PluginConformance
except ModuleNotFoundError as error:
    print(error)
"""


def test_pytest_is_needed_for_the_class_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTEST], capture_output=True, text=True, check=True
    )
    assert "needs pytest: pip install 'vlcore[testing]'" in done.stdout


def test_no_other_module_imports_pytest() -> None:
    package = Path(vlcore.testing.__file__).parent
    files = [*package.rglob("*.py"), *(package.parent / "cli").glob("*.py")]
    importing = [path.name for path in files if "import pytest" in path.read_text("utf-8")]
    assert importing == ["conformance.py"]
