"""Every command and Python block that the README and the docs show is run here."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx2
import pytest
from checkpoints import write_json, write_llava, write_yi
from documents import ROOT, Block, blocks_of, commands_of, write_files
from internvl_checkpoint import write_internvl
from patchwork import write_patchwork
from PIL import Image
from qwen_checkpoints import write_pointing_qwen
from typer.testing import CliRunner
from waits import TIMEOUT_S

import vlcore
import vlcore.clip
import vlcore.testing
from vlcore.cli import app
from vlcore.testing import check_plugin

README = ROOT / "README.md"
FOLLOWED_ELSEWHERE = "tutorial.md"  # in test_tutorial.py
DOCUMENTS = (
    README,
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != FOLLOWED_ELSEWHERE),
)
PLUGIN_READMES = sorted((ROOT / "plugins").glob("*/README.md"))
STAND_INS = {
    "OpenGVLab/InternVL3-1B-hf": write_internvl,
    "01-ai/Yi-VL-6B": write_yi,
    "Qwen/Qwen-VL-Chat": write_pointing_qwen,
    "liuhaotian/llava-v1.5-7b": write_llava,
}
"""Tiny checkpoints in the places of those that the plugins' READMEs name."""
NEEDS_NO_RUN = {"make test", "make test-turbomind"}  # what runs this, and what runs next to it
STARTS_A_PROCESS = re.compile(r"make demo|.*vlcore serve .*")
BLOCKS = blocks_of(DOCUMENTS)
COMMANDS = commands_of(BLOCKS)
PLUGIN_OF_THE_README = [block for block in blocks_of([README]) if block.file]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(one, marks=[pytest.mark.slow] if STARTS_A_PROCESS.fullmatch(one) else [])
        for one in COMMANDS
    ],
)
def test_every_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for option in ("--out", "--directory"):
        command = command.replace(f"{option} ", f"{option} {tmp_path}/")
    command = command.replace(".venv/bin/python", sys.executable)
    program, *arguments = shlex.split(command)
    if arguments[:1] == ["serve"]:
        see_it_served([sys.executable, "-m", "vlcore", *arguments, "--port", "0"])
        return
    if program == ".venv/bin/vlcore":
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert result.stdout.strip()
        return
    if command in NEEDS_NO_RUN:
        command = f"{command} --dry-run"
    # The command is this project's own, and a reader's shell would run it in the same way.
    done = subprocess.run(command, shell=True, capture_output=True, text=True)  # noqa: S602
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def see_it_served(command: list[str]) -> None:
    """Start a server, ask whether it is ready, and stop it."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"is served at (http://\S+)", line):
                break
        else:
            pytest.fail("".join(log))
        try:
            assert httpx2.get(f"{found[1]}/ready").json() == {"status": "ready"}
            process.terminate()
            process.stderr.read()
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()


def test_the_readme_shows_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python" and not b.file], ids=str
)
def test_every_python_block_runs(
    block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    block.run()
    assert capsys.readouterr().out.strip() or "print" not in block.text


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "toml"], ids=str)
def test_every_toml_block_can_be_read(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.fixture
def checkpoint_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint for the README's plugin, which is installed."""
    site = tmp_path / "site"
    assert write_files(PLUGIN_OF_THE_README, site)
    (entry_points,) = (block.text for block in blocks_of([README]) if block.language == "toml")
    architecture, module = re.findall(r'^(\w+) = "(\w+)"$', entry_points, re.MULTILINE)[0]
    info = site / "vl_plugin_patchwork-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vl-plugin-patchwork\nVersion: 1.0\n"
        "Requires-Dist: vlcore>=0.1,<0.2\n"
    )
    (info / "entry_points.txt").write_text(f"[vlcore.architectures]\n{architecture} = {module}\n")
    monkeypatch.syspath_prepend(site)
    return write_patchwork(tmp_path / "checkpoint", architecture)


def test_the_plugin_of_the_readme_answers(checkpoint_of_the_readme: Path) -> None:
    image = Image.new("RGB", (30, 40), "red")
    with vlcore.pipeline(checkpoint_of_the_readme) as pipe:
        answer = pipe(("What is this?", image), {"max_new_tokens": 3, "ignore_eos": True})
    assert answer.generate_token_len == 3
    assert answer.input_token_len > 16


@pytest.mark.slow
def test_the_plugin_of_the_readme_passes_the_conformance_kit(
    checkpoint_of_the_readme: Path,
) -> None:
    report = check_plugin(checkpoint_of_the_readme)
    assert report.ok, report


# -- the plugins' READMEs


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The READMEs' Hub repo ids as tiny checkpoints, and their images."""
    directory = tmp_path_factory.mktemp("elsewhere")
    for repo_id, write in STAND_INS.items():
        write(directory / repo_id)
        file = directory / repo_id / "generation_config.json"
        options = json.loads(file.read_text("utf-8")) if file.exists() else {}
        if "chat_format" not in options:  # answers of random weights would fill the context
            write_json(file, options | {"eos_token_id": list(range(0, 1000, 16))})
    for filename in ("table.png", "street.jpg"):
        Image.new("RGB", (60, 40), "green").save(directory / filename)
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
    for words in (
        "weights in fp16",
        "## Use it",
        "## Differences from the reference implementation",
    ):
        assert words in text
