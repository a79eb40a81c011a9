"""The script that takes the GPU's part to another machine, without another machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "turbomind_gpu.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("turbomind_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, size: int) -> bytes:
    content = bytes(i % 251 for i in range(size))
    path.write_bytes(content)
    return content


@pytest.mark.parametrize(("size", "num_parts"), [(100, 0), (101, 2), (200, 2), (1201, 13)])
def test_large_wheels_travel_in_parts(
    script: ModuleType, tmp_path: Path, size: int, num_parts: int
) -> None:
    wheel = tmp_path / "large-1.0-py3-none-any.whl"
    content = write(wheel, size)
    small = write(tmp_path / "small-1.0-py3-none-any.whl", 10)
    script.split(wheel, part_bytes=100)
    assert len(list(tmp_path.glob("*.part-*"))) == num_parts
    joined = {path.name: path for path in script.join(tmp_path, tmp_path / "joined")}
    assert joined[wheel.name].read_bytes() == content
    assert joined["small-1.0-py3-none-any.whl"].read_bytes() == small


def test_what_is_installed_is_left_alone(script: ModuleType) -> None:
    wheels = [Path("pytest-1.0-py3-none-any.whl"), Path("never_heard_of-1.0-py3-none-any.whl")]
    assert script.lacking(wheels, metadata.distributions()) == wheels[1:]


def test_neither_torch_nor_this_project_is_downloaded(script: ModuleType) -> None:
    pinned = script.pinned(metadata.distributions())
    names = {one.partition("==")[0] for one in pinned}
    assert {"pytest", "transformers", "safetensors", "importlib-metadata"} <= names
    assert not names & {"torch", "pip", "vlcore", "vl-plugin-llava"}


def test_packages_and_libraries_are_found_in_the_folder(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia" / "cublas" / "lib").mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    made = script.environment(tmp_path)
    assert made["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
    paths = made["LD_LIBRARY_PATH"].split(os.pathsep)
    assert paths[0] == str(tmp_path / "nvidia" / "cublas" / "lib")
    assert paths[-1] == "/elsewhere"


def test_what_a_step_prints_is_kept_and_its_failure_told(
    script: ModuleType, tmp_path: Path
) -> None:
    program = "print('measured'); raise SystemExit(3)"
    kept = tmp_path / "kept.txt"
    assert script.say(["-c", program], kept, dict(os.environ)) == 3
    assert kept.read_text() == "measured\n"


def test_it_says_how_it_is_used() -> None:
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "pack" in shown.stdout
    assert "run" in shown.stdout
