from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("av", reason="the extra vlcore[video] is not installed")

SCRIPTS = Path(__file__).parents[2] / "scripts"

pytestmark = pytest.mark.slow


def test_damaged_videos_give_frames_or_an_error_of_vlcore_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    spec = importlib.util.spec_from_file_location("fuzz_videos", SCRIPTS / "fuzz_videos.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    counts = script.fuzz(1000, 7, tmp_path)
    assert set(counts) == {"video", "VideoError", "VideoLimitError"}
    assert not list(tmp_path.iterdir())
