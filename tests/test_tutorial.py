"""The tutorial is followed here step by step, in its own order, and ends with a working plugin."""

from __future__ import annotations

import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from documents import ROOT, Block, blocks_of, write_files
from typer.testing import CliRunner

from vlcore.cli import app

TUTORIAL = ROOT / "docs" / "tutorial.md"
TRANSLATIONS = sorted((ROOT / "docs").glob("*/tutorial.md"))
BLOCKS = blocks_of([TUTORIAL])
MAX_LINES = 60


class Reader:
    """Follows the steps of the tutorial in a directory of its own."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder = folder
        self.site = site
        self.output = ""

    def follow(self, block: Block) -> str:
        """Run a code block and return its output, or compare an output block with it."""
        if block.file is not None:
            write_files([block], self.folder)
        elif block.language == "python":
            block.run()
        elif block.language == "text":
            printed = _squeezed(self.output)
            missing = [line for line in block.text.splitlines() if _squeezed(line) not in printed]
            assert not missing, f"{missing} not in {self.output}"
        for command in block.commands:
            program, *arguments = shlex.split(command)
            self.output = self._programs[program](arguments)
        return self.output

    @property
    def _programs(self) -> dict[str, Callable[[list[str]], str]]:
        return {
            "python": self.python,
            "pip": self.pip,
            "vlcore": self.vlcore,
            "pytest": self.pytest,
            "twine": lambda arguments: self.python(["-m", "twine", *arguments]),
        }

    def python(self, arguments: list[str]) -> str:
        if arguments[0] != "-m":
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
            return ""
        if arguments[1] == "build":
            arguments = [*arguments, "--no-isolation"]  # needs no registry
        command = shlex.join([sys.executable, *arguments]).replace("'dist/*'", "dist/*")
        return self._run(command)

    def pip(self, arguments: list[str]) -> str:
        assert arguments == ["install", "--editable", "."]
        options = "--quiet --no-deps --no-index --no-build-isolation --target"
        self._run(f"{sys.executable} -m pip install {options} {self.site} .")
        return ""

    def vlcore(self, arguments: list[str]) -> str:
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip()
        return result.stdout

    def pytest(self, arguments: list[str]) -> str:
        assert not arguments
        written = self.folder / "report.txt"
        options = ["-q", "--no-header", "-p", "no:cacheprovider", f"--rootdir={self.folder}"]
        with written.open("w") as file, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", file)
            assert pytest.main([*options, "-c", "pyproject.toml"]) == 0, written.read_text()
        return written.read_text()

    def _run(self, command: str) -> str:
        # The command is the tutorial's own, and a reader's shell would run it in the same way.
        done = subprocess.run(  # noqa: S602
            command, shell=True, cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    folder, site = tmp_path / "vl-plugin-mosaic", tmp_path / "site"
    folder.mkdir()
    site.mkdir()
    shutil.copy(ROOT / "demo" / "images" / "triangle.png", folder / "image.png")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(sys, "argv", sys.argv)
    yield Reader(folder, site)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.slow
def test_the_tutorial_ends_with_a_plugin_that_works(
    reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in BLOCKS:
        reader.follow(block)
        if block.language == "python" and block.file is None:
            assert capsys.readouterr().out
    assert sorted(path.suffix for path in (reader.folder / "dist").iterdir()) == [".gz", ".whl"]


def test_the_plugin_of_the_tutorial_is_short() -> None:
    files = [block for block in BLOCKS if (block.file or "").startswith("vl_plugin_mosaic/")]
    lines = [line for block in files for line in block.text.splitlines()]
    assert len(files) == 4
    assert sum(bool(line.strip()) and not line.startswith("#") for line in lines) <= MAX_LINES


def test_there_is_a_translation() -> None:
    assert [page.parent.name for page in TRANSLATIONS] == ["zh"]


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.parent.name)
def test_a_translation_has_the_same_blocks(page: Path) -> None:
    translated = [(block.language, block.text) for block in blocks_of([page])]
    assert translated == [(block.language, block.text) for block in BLOCKS]


def _squeezed(text: str) -> str:
    return " ".join(text.split())
