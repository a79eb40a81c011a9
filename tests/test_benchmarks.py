from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = [
    path.name
    for path in sorted(BENCHMARKS.glob("*.py"))
    if path.stem not in ("run", "measure") and not path.stem.startswith("_")
]

GOOD = """
import sys

print("## Good\\n\\nWhat is compared.\\n\\n| a |\\n| :-- |\\n| " + " ".join(sys.argv[1:]) + " |")
"""


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_prints_a_title_a_paragraph_and_a_table(script: str) -> None:
    finished = python(BENCHMARKS / script, "--quick")
    assert finished.returncode == 0, finished.stderr
    title, blank, paragraph, *rest = finished.stdout.splitlines()
    assert title.startswith("## ")
    assert not blank
    assert len(paragraph) > 40
    rules = [number for number, line in enumerate(rest) if line.startswith("| :--")]
    assert rules
    for number in rules:
        assert rest[number].count("|") == rest[number - 1].count("|") == rest[number + 1].count("|")


def test_results_say_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "b_second.py").write_text(GOOD.replace("## Good", "## Second"))
    (tmp_path / "a_first.py").write_text(GOOD.replace("## Good", "## First"))
    (tmp_path / "_shared.py").write_text("raise SystemExit('no benchmark')")
    results = tmp_path / "RESULTS.md"
    finished = python(
        BENCHMARKS / "run.py", "--quick", "--directory", tmp_path, "--output", results
    )
    assert finished.returncode == 0, finished.stderr
    text = results.read_text()
    assert text.startswith("# Results of `make bench`\n\n- Date: 20")
    for fact in ("- CPU: ", "- Memory: ", "- GPU: ", "Python 3.", "vlcore 0", "torch 2"):
        assert fact in text
    assert text.index("## First") < text.index("## Second")
    assert text.count("| --quick |") == 2


def test_a_failed_benchmark_is_reported_with_the_others(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text("print('## Breaks'); raise SystemExit(3)")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "silent.py").write_text("")
    results = tmp_path / "RESULTS.md"
    finished = python(BENCHMARKS / "run.py", "--directory", tmp_path, "--output", results)
    assert finished.returncode == 1
    text = results.read_text()
    assert "## breaks.py\n\n**Failed**: exit status 3." in text
    assert "## silent.py\n\n**Failed**: no `## Title` printed." in text
    assert "## Good" in text


def test_what_cannot_be_measured_here_leaves_an_earlier_result(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    options = ("--directory", tmp_path, "--output", results)
    unmeasured, measured = "Not measured here", "Measured"
    for said, found in ((unmeasured, unmeasured), (measured, measured), (unmeasured, measured)):
        (tmp_path / "far.py").write_text(GOOD.replace("What is compared", said))
        assert python(BENCHMARKS / "run.py", *options).returncode == 0
        assert f"\n\n{found}.\n" in results.read_text()


def test_one_benchmark_is_run_again_and_other_results_stay(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(GOOD.replace("Good", name))
    results = tmp_path / "RESULTS.md"
    options = ("--directory", tmp_path, "--output", results)
    assert python(BENCHMARKS / "run.py", *options).returncode == 0
    assert python(BENCHMARKS / "run.py", *options, "--quick", "--only", "first").returncode == 0
    text = results.read_text()
    assert text.index("- CPU: ") < text.index("## first") < text.index("## second")
    assert "| --quick |" in text[: text.index("## second")]
    assert text.count("| --quick |") == 1
