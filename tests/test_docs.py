"""Every command and Python block that the README and the docs show is run here."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkpoints import write_llava, write_yi
from patchwork import write_patchwork
from PIL import Image
from qwen_checkpoints import write_pointing_qwen
from typer.testing import CliRunner

import vlcore
from vlcore.cli import app
from vlcore.testing import check_plugin

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PLUGIN_READMES = sorted((ROOT / "plugins").glob("*/README.md"))
STAND_INS = {
    "01-ai/Yi-VL-6B": write_yi,
    "Qwen/Qwen-VL-Chat": write_pointing_qwen,
    "liuhaotian/llava-v1.5-7b": write_llava,
}
"""Tiny checkpoints in the places of those that the plugins' READMEs name."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS_NO_RUN = {"make test", "make test-turbomind"}  # what runs this, and what runs beside it


@dataclass(frozen=True)
class Block:
    document: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}-{self.language}"


def blocks_of(documents: Iterable[Path]) -> list[Block]:
    return [
        Block(document, found[1], found[2])
        for document in documents
        for found in FENCE.finditer(document.read_text("utf-8"))
    ]


def commands_of(blocks: Iterable[Block]) -> list[str]:
    return [
        line.split("  #")[0].strip()
        for block in blocks
        if block.language == "sh"
        for line in block.text.splitlines()
        if line.strip()
    ]


BLOCKS = blocks_of(DOCUMENTS)
COMMANDS = commands_of(BLOCKS)


def is_file_of_the_example(block: Block) -> bool:
    return block.text.startswith("# vl_plugin_patchwork/")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str, tmp_path: Path) -> None:
    if command in NEEDS_NO_RUN:
        command = f"{command} --dry-run"
    command = command.replace(".venv/bin/", f"{sysconfig.get_path('scripts')}/")
    for option in ("--out", "--directory"):
        command = command.replace(f"{option} ", f"{option} {tmp_path}/")
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_readme_shows_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize(
    "block",
    [b for b in BLOCKS if b.language == "python" and not is_file_of_the_example(b)],
    ids=str,
)
def test_every_python_block_runs(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or "print" not in block.text


def test_the_plugin_of_the_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    for block in filter(is_file_of_the_example, BLOCKS):
        path = site / block.text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    (entry_points,) = (block.text for block in BLOCKS if block.language == "toml")
    architecture, module = re.findall(r'^(\w+) = "(\w+)"$', entry_points, re.MULTILINE)[0]
    info = site / "vl_plugin_patchwork-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vl-plugin-patchwork\nVersion: 1.0\n"
        "Requires-Dist: vlcore>=0.1,<0.2\n"
    )
    (info / "entry_points.txt").write_text(f"[vlcore.architectures]\n{architecture} = {module}\n")
    monkeypatch.syspath_prepend(site)

    picture = Image.new("RGB", (30, 40), "red")
    checkpoint = write_patchwork(tmp_path / "checkpoint", architecture)
    with vlcore.pipeline(checkpoint) as pipe:
        answer = pipe(("What is this?", picture), {"max_new_tokens": 3, "ignore_eos": True})
    assert answer.generate_token_len == 3
    assert answer.input_token_len > 16
    report = check_plugin(checkpoint)
    assert report.ok, report


# -- the plugins' READMEs


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The READMEs' hub ids as tiny checkpoints, and their pictures."""
    directory = tmp_path_factory.mktemp("elsewhere")
    for hub_id, write in STAND_INS.items():
        write(directory / hub_id)
    for picture in ("table.png", "street.jpg"):
        Image.new("RGB", (60, 40), "green").save(directory / picture)
    return directory


@pytest.mark.parametrize("readme", PLUGIN_READMES, ids=lambda path: path.parent.name)
def test_a_plugins_readme_shows_a_command_and_an_example_that_run(
    readme: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(elsewhere)
    blocks = blocks_of([readme])
    (command,) = commands_of(blocks)
    program, *arguments = shlex.split(command)
    assert program == "vlcore"
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.strip()
    (example,) = (block.text for block in blocks if block.language == "python")
    exec(compile(example, str(readme), "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("readme", PLUGIN_READMES, ids=lambda path: path.parent.name)
def test_a_plugins_readme_says_what_its_users_need(readme: Path) -> None:
    text = readme.read_text("utf-8")
    for words in ("weights in fp16", "## Use it", "## Differences from the release"):
        assert words in text
