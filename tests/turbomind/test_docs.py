"""The example of docs/turbomind.md that needs lmdeploy, on the stand-in."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from large_heads import write_checkpoint
from PIL import Image

from vlcore.plugins.stages import ModelStages

if importlib.util.find_spec("lmdeploy") is None:
    pytest.skip("lmdeploy is not installed: make test-turbomind", allow_module_level=True)

DOCUMENT = Path(__file__).parents[2] / "docs" / "turbomind.md"


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from turbomind_stand_in import on_cpu

    (example,) = re.findall(r"^```py\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    directory = write_checkpoint("llava", tmp_path / "liuhaotian" / "llava-v1.5-7b")
    Image.new("RGB", (60, 40), "green").save(tmp_path / "table.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    vision_model = ModelStages.vision_model
    monkeypatch.setattr(
        ModelStages,
        "vision_model",
        lambda self, *_, **__: vision_model(self, "cpu", torch.float32),
    )
    from vlcore.language.view_cache import ViewCache
    from vlcore.plugins.stages import load_language_model

    view = ViewCache().get(load_language_model("liuhaotian/llava-v1.5-7b"))
    with on_cpu(view) as communicators:
        namespace: dict[str, Any] = {}
        exec(compile(example, str(DOCUMENT), "exec"), namespace)
    assert capsys.readouterr().out.strip()
    assert directory.is_dir()
    (communicator,) = communicators
    assert communicator.faults == []
    assert communicator.engine_config.cache_max_block_count == 0.5
    assert communicator.asked[-1].ranges
