"""The command and the Python example of the plugin's README are run here, on a tiny checkpoint."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from qwen_checkpoints import write_pointing_qwen
from typer.testing import CliRunner

from vlcore.cli import app

README = Path(__file__).parents[1] / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(README.read_text("utf-8"))


def test_there_is_one_of_each() -> None:
    assert [language for language, _ in BLOCKS] == ["sh", "python"]


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=["sh", "python"])
def test_it_draws_the_boxes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    language: str,
    text: str,
) -> None:
    write_pointing_qwen(tmp_path / "Qwen" / "Qwen-VL-Chat")
    Image.new("RGB", (40, 30), "grey").save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    if language == "sh":
        program, *arguments = shlex.split(text)
        assert program == "vlcore"
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        output = result.stdout
    else:
        exec(compile(text, str(README), "exec"), {"__name__": "__main__"})
        output = capsys.readouterr().out
    assert "dog" in output
    with Image.open(tmp_path / "boxes.png") as drawn:
        assert drawn.size == (40, 30)
        assert len(drawn.getcolors() or ()) > 1
