"""Runs everything that needs a GPU, on a machine that may be at hand for minutes only.

    .venv/bin/python scripts/gpu.py pack source project turbomind   # where a registry is
    python3 scripts/gpu.py run facts tests encoder --parts FOLDER…  # where a GPU is
    .venv/bin/python scripts/gpu.py results build/gpu-results       # into benchmarks/RESULTS.md

``pack`` makes folders that are small enough to be transferred one at a time: ``source`` holds the
files of this repository that the steps read, ``project`` its packages and the pure-Python ones that
a machine with torch and transformers may lack, and ``turbomind`` lmdeploy and what it needs of
CUDA 12. ``run`` unpacks what the machine lacks into a folder of its own and runs independent steps.
Each step has a time limit and writes its output to a file line by line, so a run that is cut off
loses one step.

``run`` needs Python's standard library, pip, and a CUDA build of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
SHIM = ROOT / "scripts" / "cublas12_shim.c"
PARTS = ("source", "project", "turbomind")
PART_BYTES = 55 * 1000**2
PURE_WHEELS = (
    *("filelock", "httpcore2", "httpx2", "importlib-metadata", "jinja2", "lazy-importer"),
    *("lazy-loader", "packaging", "platformdirs", "pluggy", "tqdm", "truststore", "typer", "zipp"),
)
"""Requirements of vlcore that are small and written in Python alone."""
LMDEPLOY = "lmdeploy"
CUDA_RUNTIME = "nvidia-cuda-runtime-cu12==12.4.127"
"""TurboMind is linked with CUDA 12, whatever torch has."""
TURBOMIND_WHEELS = (
    *("addict", "annotated-types", "certifi", "charset-normalizer", "mmengine-lite"),
    *("platformdirs", "pybase64", "pydantic", "pydantic-core", "requests", "shortuuid"),
    *("termcolor", "typing-inspection", "urllib3", "yapf"),
)
"""What lmdeploy imports besides what comes with torch and transformers."""
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
LEFT_OUT = ("demo/", "docs/", "examples/")
"""Folders of the repository that no step reads."""
GRACE_S = 5
"""Between the interruption of a step that is late and its end."""
STOPPED = "stopped at its limit"
FACTS = """
import json, platform, subprocess, sys
from datetime import datetime, timezone
from importlib import metadata
from importlib.metadata import PackageNotFoundError, version
import torch
def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
driver = None
if torch.cuda.is_available():
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()[0]
    except (OSError, IndexError, subprocess.SubprocessError):
        pass
    free, total = torch.cuda.mem_get_info()
    left = right = torch.randn(512, 512, device="cuda")
    assert bool((left @ right).isfinite().all())
facts = {
    "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    "devices": torch.cuda.device_count(),
    "memory_gib": round(total / 2**30) if torch.cuda.is_available() else None,
    "driver": driver,
    "cuda": torch.version.cuda,
    "python": platform.python_version(),
    "versions": {name: installed(name) for name in sys.argv[1].split(",")},
}
from packaging.requirements import Requirement
facts["unmet"] = [
    f"{one} (installed: {installed(one.name)})"
    for line in metadata.requires("vlcore") or ()
    if "extra ==" not in line
    for one in [Requirement(line)]
    if not one.specifier.contains(installed(one.name) or "0", prereleases=True)
]
print(json.dumps(facts, indent=2))
sys.exit(1 if facts["unmet"] else 0)
"""
PACKAGES = "vlcore,torch,transformers,accelerate,safetensors,tokenizers,pillow,numpy,lmdeploy"
IMPORT_TURBOMIND = """
import sys, torch
if not torch.cuda.is_available() and "--dry-run" in sys.argv:
    sys.exit("torch sees no CUDA device")
from importlib.metadata import version
from lmdeploy import turbomind
print(torch.cuda.get_device_name(), torch.__version__, "lmdeploy", version("lmdeploy"))
if not turbomind.is_available():
    raise SystemExit(f"TurboMind cannot be loaded: {turbomind._import_error!r}")
print("TurboMind can be loaded")
"""


@dataclass(frozen=True)
class Step:
    """One thing to run on a GPU.

    Args:
        about: what it does, for the help.
        limit_s: seconds after which it is stopped.
        output: the file for what it prints to standard output.
        arguments: of Python.
        dry: more arguments in a dry run.
        needs: the step without which this one has no use; skipped where that one fails.
    """

    about: str
    limit_s: float
    output: str
    arguments: tuple[str, ...]
    dry: tuple[str, ...] = ("--dry-run",)
    needs: str | None = None


def _pytest(*files: str) -> tuple[str, ...]:
    # Other releases than the pinned ones may warn of things that the pinned ones do not.
    options = ("-m", "cuda", "-vv", "--tb=short", "-W", "default", "--durations=15")
    return ("-m", "pytest", *options, "-o", "faulthandler_timeout=60", *files)


STEPS = {
    "facts": Step("device and versions", 60, "facts.json", ("-c", FACTS, PACKAGES), ()),
    "tests": Step(
        "the tests that need a CUDA device",
        180,
        "tests.txt",
        (*_pytest("tests/test_cuda.py"), "-p", "no:cacheprovider"),
        (),
    ),
    "encoder": Step(
        "images/s of the image encoder, ViT-L/14-336", 120, "encoder.md", ("encoder_cuda",)
    ),
    "graphs": Step("CUDA graphs of the vision encoder", 60, "graphs.md", ("cuda_graphs",)),
    "embedded": Step(
        "decoding and prefill of the embedded engine", 120, "embedded.md", ("engine_cuda",)
    ),
    "turbomind-import": Step(
        "TurboMind's extension module", 60, "turbomind-import.txt", ("-c", IMPORT_TURBOMIND)
    ),
    "turbomind-tests": Step(
        "TurboMind next to the embedded engine, token by token",
        200,
        "turbomind-tests.txt",
        (*_pytest("tests/turbomind/test_cuda.py"), "-s", "--maxfail=8"),
        (),
        "turbomind-import",
    ),
    "turbomind-bench": Step(
        "tokens/s of TurboMind and of the embedded engine, 8 layers",
        180,
        "turbomind-8.md",
        ("turbomind", "--layers", "8"),
        needs="turbomind-import",
    ),
    "turbomind-whole": Step(
        "tokens/s of TurboMind, 32 layers",
        180,
        "turbomind-32.md",
        ("turbomind", "--layers", "32"),
        needs="turbomind-import",
    ),
}
GROUPS = {"turbomind": tuple(name for name in STEPS if name.startswith("turbomind-"))}


# -- pack


def pack(part: str, folder: Path, python: str, part_bytes: int) -> list[Path]:
    """Make the folders of a part, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{part}-[0-9]*"):
        shutil.rmtree(old)
    archive = folder / f"{part}.tar.xz"
    with (
        tempfile.TemporaryDirectory(dir=folder) as name,
        tarfile.open(archive, "w:xz", preset=6) as file,
    ):
        if part == "source":
            for path in source_files():
                file.add(ROOT / path, f"source/{path}")
        else:
            wheels = Path(name) / "wheels"
            wheels.mkdir()
            collect(part, wheels, python)
            # Unpacked first: together, and with xz, they take a third of what the wheels do.
            for wheel in sorted(wheels.glob("*.whl")):
                shutil.unpack_archive(wheel, Path(name) / "site", "zip")
            file.add(Path(name) / "site", f"{part}/site")
            if part == "turbomind":
                build_shim(Path(name) / "lib")
                file.add(Path(name) / "lib", f"{part}/lib")
    return split(archive, part_bytes)


def collect(part: str, wheels: Path, python: str) -> None:
    """Put the wheels of a part into a folder."""
    if part == "turbomind":
        download((LMDEPLOY, *TURBOMIND_WHEELS), "constraints-turbomind.txt", wheels, python)
        download((CUDA_RUNTIME,), None, wheels, python)
        return
    download(PURE_WHEELS, "constraints.txt", wheels, python)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    projects = [ROOT, *(file.parent for file in sorted(ROOT.glob("plugins/*/pyproject.toml")))]
    check([*pip, "--wheel-dir", wheels, *projects])


def source_files() -> list[str]:
    """The files of this repository that the steps read and git does not ignore."""
    listed = subprocess.run(
        [shutil.which("git") or "git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [
        name
        for name in sorted(set(listed.stdout.splitlines()))
        if not name.startswith(LEFT_OUT) and (ROOT / name).is_file()
    ]


def download(names: Sequence[str], constraints: str | None, folder: Path, python: str) -> None:
    """Download wheels for another machine's Python, without their requirements."""
    pinned = {} if constraints is None else pins(ROOT / constraints)
    wanted = [f"{name}=={pinned[name]}" if name in pinned else name for name in names]
    digits = python.replace(".", "")
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    target += [f"--abi={abi}" for abi in (f"cp{digits}", "abi3", "none")]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    check([*pip, *target, *wanted])


def pins(constraints: Path) -> dict[str, str]:
    """Read the versions of a constraints file, by normalised name."""
    lines = (line.split("#")[0].strip() for line in constraints.read_text("utf-8").splitlines())
    pairs = (line.partition("==")[::2] for line in lines if "==" in line)
    return {normalised(name): version for name, version in pairs}


def normalised(name: str) -> str:
    """Spell a distribution's name as registries do."""
    return re.sub(r"[-_.]+", "-", name).lower()


def build_shim(folder: Path) -> None:
    """Build what stands in for cuBLAS 12 on a machine with cuBLAS 13."""
    folder.mkdir(parents=True)
    build: list[str | Path] = ["gcc", "-shared", "-fPIC", "-O2"]
    for soname in ("libcublas.so.12", "libcublasLt.so.12"):  # of the second, nothing is called
        versions = folder / f"{soname}.map"
        versions.write_text(f"{soname} {{ global: cublas*; local: *; }};\n")
        source = SHIM if soname == "libcublas.so.12" else "/dev/null"
        linked = ["-ldl", f"-Wl,-soname,{soname}", f"-Wl,--version-script={versions}"]
        check([*build, "-x", "c", source, "-x", "none", "-o", folder / soname, *linked])
        versions.unlink()


def split(archive: Path, part_bytes: int) -> list[Path]:
    """Cut an archive into folders ``NAME-1``, ``NAME-2``, …, and remove it."""
    name = archive.name.partition(".")[0]
    folders: list[Path] = []
    with archive.open("rb") as file:
        while chunk := file.read(part_bytes):
            folder = archive.parent / f"{name}-{len(folders) + 1}"
            folder.mkdir()
            (folder / f"{archive.name}.{len(folders) + 1:03}").write_bytes(chunk)
            folders.append(folder)
    archive.unlink()
    return folders


# -- run


def install(parts: Sequence[Path], site: Path) -> Path:
    """Unpack the archives whose parts are there, and return the repository to run.

    What the machine has already stays as it is: its own packages come first.
    """
    chunks = sorted(chunk for part in parts for chunk in part.glob("*.tar.xz.[0-9]*"))
    for name in sorted({chunk.name.rpartition(".")[0] for chunk in chunks}):
        whole = site / name
        site.mkdir(parents=True, exist_ok=True)
        with whole.open("wb") as file:
            for chunk in chunks:
                if chunk.name.startswith(name):
                    file.write(chunk.read_bytes())
        with tarfile.open(whole) as archive:
            archive.extractall(site, filter="data")
        whole.unlink()
        keep_lacking(site / name.partition(".")[0] / "site", metadata.distributions())
    if (site / "source").is_dir():
        return site / "source"
    return ROOT


def keep_lacking(folder: Path, installed: Iterable[metadata.Distribution]) -> None:
    """Remove from a folder the distributions that are installed elsewhere."""
    names = {normalised(found.metadata["Name"]) for found in installed}
    for own in list(metadata.distributions(path=[str(folder)])):
        if normalised(own.metadata["Name"]) in names:
            for name in {file.parts[0] for file in own.files or ()} - {"..", "bin"}:
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)


def environment(site: Path) -> dict[str, str]:
    """Where Python finds the unpacked packages, and the loader CUDA's libraries."""
    packages = [path for path in sorted(site.glob("*/site")) if path.is_dir()]
    libraries = sorted(site.glob("*/lib"))
    nvidia = [folder / "nvidia" for folder in packages]
    spec = util.find_spec("nvidia")
    if spec is not None:  # libnccl.so.2 and cuBLAS come with torch
        nvidia += map(Path, spec.submodule_search_locations or ())
    libraries += [path for folder in nvidia for path in sorted(folder.glob("*/lib"))]

    def extended(variable: str, paths: Sequence[Path]) -> str:
        return os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get(variable)])])

    return os.environ | {
        "PYTHONPATH": extended("PYTHONPATH", packages),
        "LD_LIBRARY_PATH": extended("LD_LIBRARY_PATH", libraries),
        "PYTHONUNBUFFERED": "1",
        "VLCORE_CACHE": str(site / "vlcore-cache"),
    }


def run(
    names: Sequence[str],
    *,
    parts: Sequence[Path],
    site: Path,
    results: Path,
    dry_run: bool,
    limit_s: float = float("inf"),
) -> int:
    """Run steps one after another; a step that fails or hangs does not stop the others."""
    started = time.monotonic()
    results.mkdir(parents=True, exist_ok=True)
    source = install(parts, site)
    variables = environment(site)
    outcomes: dict[str, dict[str, object]] = {}
    summary = results / "summary.json"
    if summary.exists():
        outcomes = json.loads(summary.read_text("utf-8"))
    steps = [step for name in names for step in GROUPS.get(name, (name,))]
    for name in steps:
        step = STEPS[name]
        if not dry_run and step.needs and outcomes.get(step.needs, {}).get("status") != "passed":
            outcomes[name] = {"status": f"skipped: {step.needs} did not pass", "seconds": 0}
            continue
        left_s = limit_s - (time.monotonic() - started)
        if left_s <= 0:
            outcomes[name] = {"status": "skipped: no time was left", "seconds": 0}
            continue
        step = replace(step, limit_s=min(step.limit_s, left_s))
        arguments = list(step.arguments)
        if not arguments[0].startswith("-"):
            arguments[0] = f"benchmarks/{arguments[0]}.py"
        arguments += step.dry if dry_run else ()
        outcomes[name] = perform(arguments, step, results, source, variables)
        summary.write_text(json.dumps(outcomes, indent=2) + "\n", "utf-8")
    summary.write_text(json.dumps(outcomes, indent=2) + "\n", "utf-8")
    for name in steps:
        print(f"{name}: {outcomes[name]['status']}, {outcomes[name]['seconds']} s", flush=True)
    return 0 if all(outcomes[name]["status"] == "passed" for name in steps) else 1


def perform(
    arguments: Sequence[str], step: Step, results: Path, source: Path, variables: dict[str, str]
) -> dict[str, object]:
    """Run one step, show what it prints, and keep it: standard output and errors apart."""
    print(f"-- {step.output}, {step.limit_s:.0f} s at most", flush=True)
    started = time.monotonic()
    log = results / f"{step.output}.log"
    with (
        (results / step.output).open("w") as output,
        log.open("w") as errors,
        ExitStack() as running,
    ):
        process = running.enter_context(
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=source,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        late = threading.Event()

        def stop(how: signal.Signals) -> None:
            late.set()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, how)

        # Interrupted first, so that pytest lists what failed until then.
        timers = [
            threading.Timer(step.limit_s, stop, [signal.SIGINT]),
            threading.Timer(step.limit_s + GRACE_S, stop, [signal.SIGKILL]),
        ]
        for timer in timers:
            timer.start()
        assert process.stdout is not None
        assert process.stderr is not None
        copies = [
            threading.Thread(target=_copy, args=(stream, file))
            for stream, file in ((process.stdout, output), (process.stderr, errors))
        ]
        for copy in copies:
            copy.start()
        status = process.wait()
        for timer in timers:
            timer.cancel()
        for copy in copies:
            copy.join()
    how = "passed" if status == 0 else f"failed with exit status {status}"
    seconds = round(time.monotonic() - started, 1)
    return {"status": STOPPED if late.is_set() else how, "seconds": seconds}


def _copy(stream: IO[str], file: IO[str]) -> None:
    for line in stream:
        print(line, end="", flush=True)
        file.write(line)
        file.flush()


def check(command: Sequence[str | Path]) -> None:
    """Run a program that must succeed."""
    subprocess.run(command, check=True)


# -- results


def write_results(folder: Path, output: Path) -> int:
    """Put the tables of a run into RESULTS.md, each with its device, also those cut off."""
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    outcomes = json.loads((folder / "summary.json").read_text("utf-8"))
    passed = [
        folder / STEPS[name].output
        for name, outcome in outcomes.items()
        if STEPS[name].output.endswith(".md")
        and (outcome["status"] == "passed" or outcome["status"] == STOPPED)
        and "| :--" in (folder / STEPS[name].output).read_text("utf-8")
    ]
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items() if v)
    where = (
        f"{facts['date']}, one {facts['device']} ({facts['memory_gib']} GiB), driver "
        f"{facts['driver']}, CUDA {facts['cuda']}, Python {facts['python']}, {versions}."
    )
    script = ROOT / "benchmarks" / "run.py"
    command: list[str | Path] = [sys.executable, script, "--output", output]
    return subprocess.run([*command, "--where", where, "--take", *passed]).returncode


# -- the command line


def main() -> int:
    """Read the command line."""
    steps = "\n".join(f"  {name:17} {step.about}" for name, step in STEPS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nsteps:\n{steps}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="make folders to transfer")
    packing.add_argument("part", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    packing.add_argument("--to", type=Path, default=ROOT / "build" / "gpu")
    packing.add_argument("--python", default="3.12", help="of the machine with the GPU")
    packing.add_argument("--part-mb", type=int, default=PART_BYTES // 1000**2)
    running = commands.add_parser("run", help="run steps on a GPU")
    running.add_argument("steps", nargs="+", choices=[*STEPS, *GROUPS], metavar="STEP")
    running.add_argument("--parts", type=Path, nargs="*", default=[], help="transferred folders")
    running.add_argument("--site", type=Path, default=ROOT / "build" / "gpu-site")
    running.add_argument("--results", type=Path, default=ROOT / "build" / "gpu-results")
    running.add_argument(
        "--limit-s", type=float, default=float("inf"), help="seconds for all steps together"
    )
    running.add_argument(
        "--dry-run", action="store_true", help="tiny sizes, and on a CPU where there is no GPU"
    )
    writing = commands.add_parser("results", help="write figures into benchmarks/RESULTS.md")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "RESULTS.md")
    options = parser.parse_args()
    if options.command == "pack":
        for part in options.part:
            for folder in pack(part, options.to, options.python, options.part_mb * 1000**2):
                size = sum(file.stat().st_size for file in folder.iterdir())
                print(f"{folder}: {size / 1000**2:.1f} MB", flush=True)
        return 0
    if options.command == "results":
        return write_results(options.folder, options.output)
    return run(
        options.steps,
        parts=options.parts,
        site=options.site.resolve(),
        results=options.results.resolve(),
        dry_run=options.dry_run,
        limit_s=options.limit_s,
    )


if __name__ == "__main__":
    sys.exit(main())
