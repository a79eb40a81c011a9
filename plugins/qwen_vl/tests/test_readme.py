"""The command and the Python example of the plugin's README are run here, on a tiny checkpoint."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image
from qwen_checkpoints import write_pointing_qwen

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
        (command,) = entry_points(group="console_scripts", name=program)
        monkeypatch.setattr("sys.argv", [program, *arguments])
        with pytest.raises(SystemExit) as ended:
            command.load()()
        assert ended.value.code == 0
    else:
        exec(compile(text, str(README), "exec"), {"__name__": "__main__"})
    assert "dog" in capsys.readouterr().out
    with Image.open(tmp_path / "boxes.png") as drawn:
        assert drawn.size == (40, 30)
        assert len(drawn.getcolors() or ()) > 1
