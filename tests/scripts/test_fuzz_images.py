from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_images.py"


def test_damaged_files_give_an_image_or_an_error_of_vlcore(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("fuzz_images", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    counts = script.fuzz(500, 7, tmp_path / "failures")
    assert set(counts) == {"image", "ImageError", "ImageLimitError", "ImageDownloadError"}
    assert not (tmp_path / "failures").exists()
