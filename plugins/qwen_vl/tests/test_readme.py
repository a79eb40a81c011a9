"""The command and the Python example of the plugin's README are run here, on a tiny checkpoint."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
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
def test_it_draws_the_boxes(tmp_path: Path, language: str, text: str) -> None:
    write_pointing_qwen(tmp_path / "Qwen" / "Qwen-VL-Chat")
    Image.new("RGB", (40, 30), "grey").save(tmp_path / "street.jpg")
    if language == "sh":
        arguments = ["sh", "-c", f"{sysconfig.get_path('scripts')}/{text}"]
    else:
        arguments = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dog" in done.stdout
    with Image.open(tmp_path / "boxes.png") as drawn:
        assert drawn.size == (40, 30)
        assert len(drawn.getcolors() or ()) > 1
