"""Command and code of the README run, with a tiny checkpoint instead of the published one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).parents[1] / "README.md"
MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct"


def test_command_and_example(
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / MODEL).parent.mkdir()
    (tmp_path / MODEL).symlink_to(write("smolvlm"))
    Image.new("RGB", (100, 60), "red").save(tmp_path / "table.png")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    for language, text in blocks:
        if language == "sh":
            program, *arguments = shlex.split(text)
            (command,) = entry_points(group="console_scripts", name=program)
            monkeypatch.setattr("sys.argv", [program, *arguments])
            with pytest.raises(SystemExit) as ended:
                command.load()()
            assert ended.value.code == 0, capsys.readouterr().err
            assert capsys.readouterr().out.strip()
        else:
            exec(compile(text, str(README), "exec"), {})
            assert re.search(r"\d+ tokens instead of \d+", capsys.readouterr().out)
    assert [language for language, _ in blocks] == ["sh", "python"]
