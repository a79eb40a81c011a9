"""Runs everything about TurboMind that needs a GPU, on a machine that reaches no package registry.

    .venv-turbomind/bin/python scripts/turbomind_gpu.py pack wheels    # where there is a registry
    python3 scripts/turbomind_gpu.py run wheels                        # where there is a GPU

``pack`` fills a folder with wheels for the other machine's Python: of all that make test-turbomind
installs but torch, of this project, and of the CUDA libraries that TurboMind asks for; large ones
in parts. Bring folder and repository along. ``run`` installs what the machine lacks into a folder
of its own, then runs the tests marked cuda and the benchmark, and writes what they say into
``results``. It takes nothing but Python's standard library, and a torch for CUDA that is there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata, util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PART_BYTES = 55 * 1024**2
CUDA_LIBRARIES = ("nvidia-cublas-cu12==12.4.5.8", "nvidia-cuda-runtime-cu12==12.4.127")
"""TurboMind is linked with CUDA 12 whatever torch has; of the recent releases these are small."""
STAYS_HERE = re.compile(r"torch|pip|setuptools|wheel|vlcore|vl-plugin-.*")
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)


def pack(folder: Path, python: str) -> None:
    """Fill a folder with the wheels that another machine needs."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    digits = python.replace(".", "")
    target += [f"--abi={abi}" for abi in (f"cp{digits}", "abi3", "none")]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    wanted = [*pinned(metadata.distributions()), *CUDA_LIBRARIES]
    run([*pip, "download", "--quiet", "--no-deps", "--dest", folder, *target, *wanted])
    projects = [ROOT, *(file.parent for file in sorted(ROOT.glob("plugins/*/pyproject.toml")))]
    run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, *projects])
    for wheel in sorted(folder.glob("*.whl")):
        split(wheel)


def pinned(distributions: Iterable[metadata.Distribution]) -> list[str]:
    """Name what is installed, but for what the other machine has or what is built."""
    names = {
        found.metadata["Name"].lower().replace("_", "-"): found.version for found in distributions
    }
    return sorted(
        f"{name}=={version}" for name, version in names.items() if not STAYS_HERE.fullmatch(name)
    )


def split(wheel: Path, part_bytes: int = PART_BYTES) -> None:
    """Cut a large file into ``NAME.part-000``, …, and remove it."""
    if wheel.stat().st_size <= part_bytes:
        return
    with wheel.open("rb") as file:
        for number in range(-(-wheel.stat().st_size // part_bytes)):
            (wheel.parent / f"{wheel.name}.part-{number:03}").write_bytes(file.read(part_bytes))
    wheel.unlink()


def join(folder: Path, into: Path) -> list[Path]:
    """Give all wheels of a folder; those in parts are put together elsewhere."""
    into.mkdir(parents=True, exist_ok=True)
    whole = sorted(folder.glob("*.whl"))
    for name in sorted({part.name.rpartition(".part-")[0] for part in folder.glob("*.whl.part-*")}):
        with (into / name).open("wb") as file:
            for part in sorted(folder.glob(f"{name}.part-*")):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)
        whole.append(into / name)
    return whole


def lacking(wheels: Sequence[Path], installed: Iterable[metadata.Distribution]) -> list[Path]:
    """Keep the wheels of what is not installed, in whatever version."""
    names = {re.sub(r"[-_.]+", "_", found.metadata["Name"]).lower() for found in installed}
    return [wheel for wheel in wheels if wheel.name.split("-")[0].lower() not in names]


def environment(site: Path) -> dict[str, str]:
    """Where Python finds the packages, and the loader CUDA's libraries."""
    places = [site / "nvidia"]
    spec = util.find_spec("nvidia")
    if spec is not None:  # libnccl.so.2 came with torch
        places += map(Path, spec.submodule_search_locations or ())
    libraries = [str(path) for place in places for path in sorted(place.glob("*/lib"))]

    def extended(variable: str, values: Sequence[str]) -> str:
        return os.pathsep.join([*values, *filter(None, [os.environ.get(variable)])])

    return os.environ | {
        "PYTHONPATH": extended("PYTHONPATH", [str(site)]),
        "LD_LIBRARY_PATH": extended("LD_LIBRARY_PATH", libraries),
        "VLCORE_CACHE": str(site / "vlcore-cache"),
    }


def check(folder: Path, site: Path, results: Path, benchmark: Sequence[str]) -> int:
    """Install what is lacking, run tests and benchmark, and write what they say."""
    wheels = lacking(join(folder, site / "joined"), metadata.distributions())
    print(f"installing {len(wheels)} wheels into {site}", flush=True)
    install = ["install", "--quiet", "--no-deps", "--no-index", "--upgrade", "--target", str(site)]
    run([sys.executable, "-m", "pip", *install, *map(str, wheels)])
    results.mkdir(parents=True, exist_ok=True)
    versions = (
        "import torch; from lmdeploy import turbomind; from importlib.metadata import version; "
        "print(torch.cuda.get_device_name(), torch.__version__, version('lmdeploy'), "
        "turbomind.is_available() or turbomind._import_error)"
    )
    # Releases beside the pinned ones may warn of things that the pinned ones do not.
    tests = ["-m", "pytest", "-m", "cuda", "-rs", "-s", "-W", "default"]
    steps = {
        "versions.txt": ["-c", versions],
        "tests.txt": tests,
        "turbomind.md": ["benchmarks/turbomind.py", *benchmark],
    }
    return max(
        [say(arguments, results / name, environment(site)) for name, arguments in steps.items()]
    )


def say(arguments: Sequence[str], file: Path, variables: dict[str, str]) -> int:
    """Run Python; what it prints goes to the terminal and into a file."""
    print(f"-- {file.name}", flush=True)
    command = [sys.executable, *arguments]
    with (
        file.open("w") as kept,
        subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            kept.write(line)
    return process.returncode


def run(command: Sequence[str | Path]) -> None:
    """Run a program that must succeed."""
    subprocess.run(command, check=True)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="fill a folder with wheels")
    packing.add_argument("folder", type=Path)
    packing.add_argument("--python", default="3.12", help="of the machine with the GPU")
    running = commands.add_parser("run", help="run tests and benchmark on a GPU")
    running.add_argument("folder", type=Path)
    running.add_argument("--site", type=Path, default=ROOT / ".venv-turbomind-gpu")
    running.add_argument("--results", type=Path, default=Path("results"))
    running.add_argument("--layers", help="of the benchmark's model; 32 unless said")
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.folder, options.python)
        return 0
    benchmark = [] if options.layers is None else ["--layers", options.layers]
    return check(options.folder, options.site, options.results.resolve(), benchmark)


if __name__ == "__main__":
    sys.exit(main())
