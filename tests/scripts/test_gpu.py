"""The script that runs what needs a GPU on another machine, without another machine."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu.py"
FACTS = {
    "date": "2026-01-02",
    "device": "Imaginary GPU",
    "memory_gib": 80,
    "driver": "1.2",
    "cuda": "13.0",
    "python": "3.12.3",
    "versions": {"torch": "2.11.0", "lmdeploy": None},
}
MEASURED = "## The image encoder on a GPU\n\nA paragraph.\n\n| a |\n| :-- |\n| 1 |\n"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def step(script: ModuleType, program: str, **options: Any) -> Any:
    values = {"about": "a test", "limit_s": 30, "output": "out.txt", "dry": ()} | options
    return script.Step(arguments=("-c", program), **values)


def run(script: ModuleType, names: list[str], tmp_path: Path, **options: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"parts": [], "dry_run": False} | options
    script.run(names, site=tmp_path / "site", results=tmp_path / "results", **values)
    summary = (tmp_path / "results" / "summary.json").read_text()
    return {name: outcome["status"] for name, outcome in json.loads(summary).items()}


def archive(folder: Path, name: str, files: dict[str, str]) -> Path:
    """Write an archive of text files as ``pack`` does, before it is cut into parts."""
    for path, text in files.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_text(text)
    with tarfile.open(folder / f"{name}.tar.xz", "w:xz") as file:
        file.add(folder / name, name)
    shutil.rmtree(folder / name)
    return folder / f"{name}.tar.xz"


def test_the_result_of_each_step_is_written_as_it_ends(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {
        "bad": step(script, "print('measured'); raise SystemExit(3)"),
        "good": step(script, "import sys; print('error', file=sys.stderr)", output="good.txt"),
    }
    monkeypatch.setattr(script, "STEPS", steps)
    outcomes = run(script, ["bad", "good"], tmp_path)
    assert outcomes == {"bad": "failed with exit status 3", "good": "passed"}
    assert (tmp_path / "results" / "out.txt").read_text() == "measured\n"
    assert (tmp_path / "results" / "good.txt").read_text() == ""
    assert (tmp_path / "results" / "good.txt.log").read_text() == "error\n"


def test_a_step_that_hangs_is_stopped_and_what_it_printed_is_kept(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = "import threading; print('half', flush=True); threading.Event().wait()"
    steps = {
        "hangs": step(script, hangs, limit_s=1),
        "next": step(script, "print('whole')", output="next.txt"),
    }
    monkeypatch.setattr(script, "STEPS", steps)
    outcomes = run(script, ["hangs", "next"], tmp_path)
    assert outcomes == {"hangs": "stopped at its limit", "next": "passed"}
    assert (tmp_path / "results" / "out.txt").read_text() == "half\n"


def test_no_step_begins_after_the_limit_of_the_whole_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "STEPS", {"late": step(script, "print('too late')")})
    assert run(script, ["late"], tmp_path, limit_s=0) == {"late": "skipped: no time was left"}


def test_a_step_is_skipped_where_the_one_that_it_needs_failed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {
        "first": step(script, "raise SystemExit(1)"),
        "second": step(script, "print('never')", output="second.txt", needs="first"),
    }
    monkeypatch.setattr(script, "STEPS", steps)
    outcomes = run(script, ["first", "second"], tmp_path)
    assert outcomes["second"] == "skipped: first did not pass"
    assert not (tmp_path / "results" / "second.txt").exists()


@pytest.mark.parametrize("num_parts", [1, 3])
def test_what_was_split_is_unpacked_again(
    script: ModuleType, tmp_path: Path, num_parts: int
) -> None:
    files = {"scripts/x.py": "print('x')", "noise.txt": os.urandom(60).hex()}
    packed = archive(tmp_path, "source", files)
    folders = script.split(packed, -(-packed.stat().st_size // num_parts))
    assert len(folders) == num_parts
    source = script.install(list(reversed(folders)), tmp_path / "site")
    assert source == tmp_path / "site" / "source"
    assert {name: (source / name).read_text() for name in files} == files


def test_what_is_installed_is_left_alone(script: ModuleType, tmp_path: Path) -> None:
    files: dict[str, str] = {}
    for name in ("pytest", "never_heard_of"):
        info = f"site/{name}-1.0.dist-info"
        files |= {
            f"site/{name}/__init__.py": "",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{info}/RECORD": f"{name}/__init__.py,,\n{info.removeprefix('site/')}/METADATA,,\n",
        }
    script.install(script.split(archive(tmp_path, "project", files), 10_000), tmp_path / "site")
    unpacked = tmp_path / "site" / "project" / "site"
    assert sorted(path.name for path in unpacked.iterdir()) == [
        "never_heard_of",
        "never_heard_of-1.0.dist-info",
    ]
    assert [found.metadata["Name"] for found in metadata.distributions(path=[str(unpacked)])] == [
        "never_heard_of"
    ]


def test_packages_and_libraries_are_found_in_the_folder(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, shim = tmp_path / "turbomind" / "site", tmp_path / "turbomind" / "lib"
    runtime = packages / "nvidia" / "cuda_runtime" / "lib"
    for folder in (shim, runtime):
        folder.mkdir(parents=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    made = script.environment(tmp_path)
    assert made["PYTHONPATH"].split(os.pathsep)[0] == str(packages)
    paths = made["LD_LIBRARY_PATH"].split(os.pathsep)
    assert paths[:2] == [str(shim), str(runtime)]
    assert paths[-1] == "/elsewhere"


def test_every_package_to_download_has_a_pinned_version(script: ModuleType) -> None:
    root = SCRIPT.parents[1]
    project, turbomind = (
        script.pins(root / name) for name in ("constraints.txt", "constraints-turbomind.txt")
    )
    assert set(script.PURE_WHEELS) <= set(project)
    assert {script.LMDEPLOY, *script.TURBOMIND_WHEELS} <= set(turbomind)


def test_the_source_holds_what_the_steps_read(script: ModuleType) -> None:
    files = set(script.source_files())
    steps = {step.arguments for step in script.STEPS.values()}
    scripts = {one[0] for one in steps if not one[0].startswith("-")}
    tests = {name for one in steps for name in one if name.startswith("tests/")}
    assert {f"benchmarks/{name}.py" for name in scripts} | tests <= files
    assert {"pyproject.toml", "conftest.py", "scripts/gpu.py", "vlcore/__init__.py"} <= files


def test_the_shim_forwards_to_the_next_cublas(script: ModuleType, tmp_path: Path) -> None:
    """In a process of its own, which loads a replacement of cuBLAS 13."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    script.build_shim(tmp_path / "lib")
    source = tmp_path / "stand_in.c"
    source.write_text(
        "int cublasSetWorkspace_v2(void *handle, void *workspace, unsigned long size)"
        " { return handle == (void *)1 && workspace == (void *)2 && size == 3 ? 42 : -1; }\n"
    )
    stand_in = tmp_path / "libcublas.so.13"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", stand_in, source, f"-Wl,-soname,{stand_in.name}"],
        check=True,
    )
    program = f"""
import ctypes
ctypes.CDLL({str(stand_in)!r}, mode=ctypes.RTLD_GLOBAL)
ctypes.CDLL({str(tmp_path / "lib" / "libcublasLt.so.12")!r})
shim = ctypes.CDLL({str(tmp_path / "lib" / "libcublas.so.12")!r})
size = ctypes.c_size_t(3)
print(shim.cublasSetWorkspace_v2(ctypes.c_void_p(1), ctypes.c_void_p(2), size))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "42\n", done.stderr
    shim = ctypes.CDLL(str(tmp_path / "lib" / "libcublas.so.12"))
    for name in ("Create_v2", "Destroy_v2", "GemmEx", "GetMathMode", "SetStream_v2"):
        assert hasattr(shim, f"cublas{name}")


def test_results_replace_earlier_ones_and_name_the_device(
    script: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    (tmp_path / "encoder.md").write_text(MEASURED)
    (tmp_path / "graphs.md").write_text("## Graphs\n\nnot measured\n")
    (tmp_path / "turbomind-8.md").write_text("## TurboMind\n\nhalf of it\n")
    outcomes = {"facts": "passed", "encoder": "passed", "graphs": "passed"}
    outcomes["turbomind-bench"] = "stopped at its limit"
    summary = {name: {"status": status, "seconds": 1} for name, status in outcomes.items()}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    results = tmp_path / "RESULTS.md"
    kept = "# Results\n\n- CPU: one\n\n## Graphs\n\nkept\n\n## The image encoder on a GPU\n\nold\n"
    results.write_text(kept)
    assert script.write_results(tmp_path, results) == 0
    text = results.read_text()
    assert text.startswith("# Results\n\n- CPU: one\n\n## Graphs\n\nkept\n\n")
    assert "one Imaginary GPU (80 GiB), driver 1.2, CUDA 13.0, Python 3.12.3, torch 2.11.0." in text
    assert text.index("2026-01-02") < text.index("A paragraph.")
    assert "old" not in text
    assert "half of it" not in text


@pytest.mark.slow
def test_every_step_runs_dry_in_a_fresh_folder(tmp_path: Path) -> None:
    """With tiny sizes, on whatever device is there; TurboMind only where it is installed."""
    steps = ["facts", "tests", "encoder", "graphs", "embedded", "turbomind-bench"]
    done = subprocess.run(
        [sys.executable, SCRIPT, "run", *steps, "--dry-run", "--site", "s", "--results", "r"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert {name: outcome["status"] for name, outcome in summary.items()} == dict.fromkeys(
        steps, "passed"
    )
    assert json.loads((tmp_path / "r" / "facts.json").read_text())["unmet"] == []
    for name in ("encoder", "graphs", "embedded", "turbomind-8"):
        assert "not measured" in (tmp_path / "r" / f"{name}.md").read_text()


def test_its_help_lists_the_steps() -> None:
    shown = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for name in ("pack", "run", "results", "facts", "turbomind-import"):
        assert name in shown.stdout
