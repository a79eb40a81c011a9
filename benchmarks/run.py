"""Runs every benchmark and writes the results, with the machine's description, to RESULTS.md."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from measure import progress

HERE = Path(__file__).parent
NOT_MEASURED = "not measured"
"""What a benchmark prints that needs another machine or environment; an earlier result stays."""
PACKAGES = ("vlcore", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "pillow")


def benchmarks(directory: Path) -> list[Path]:
    """List the benchmarks of a directory in alphabetical order, without shared modules."""
    return sorted(
        path
        for path in directory.glob("*.py")
        if path.stem not in ("run", "measure") and not path.stem.startswith("_")
    )


def run(script: Path, options: Iterable[str]) -> tuple[bool, str]:
    """Run one benchmark; return whether it succeeded, and its Markdown."""
    progress(f"-- {script.name}")
    finished = subprocess.run(
        [sys.executable, script, *options], stdout=subprocess.PIPE, text=True, check=False
    )
    output = finished.stdout.strip()
    if finished.returncode == 0 and output.startswith("## "):
        return True, output
    why = f"exit status {finished.returncode}" if finished.returncode else "no `## Title` printed"
    return False, f"## {script.name}\n\n**Failed**: {why}."


def results_by_title(path: Path) -> dict[str, str]:
    """Read the results of earlier runs, by benchmark."""
    _, *sections = sections_of(path.read_text("utf-8"))
    return {_title(section): section for section in sections}


def sections_of(text: str) -> list[str]:
    """Split Markdown before each ``## Title``."""
    return re.split(r"\n\n(?=## )", text.strip())


def _title(section: str) -> str:
    return section.partition("\n")[0]


def take(files: Iterable[Path], where: str | None, output: Path) -> int:
    """Merge results of another machine into a file of results, with a description of it."""
    head, *_ = sections_of(output.read_text("utf-8"))
    sections = results_by_title(output)
    for file in files:
        title, _, text = file.read_text("utf-8").strip().partition("\n\n")
        if not title.startswith("## ") or NOT_MEASURED in text.lower():
            progress(f"left out, not measured: {file}")
            continue
        sections[title] = "\n\n".join([title, *([where] if where else []), text])
        progress(f"taken: {file}")
    output.write_text("\n\n".join([head, *sections.values()]) + "\n", "utf-8")
    return 0


def machine() -> str:
    """Describe the machine and the versions, as Markdown."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
            f"- CPU: {_cpu_model()}, {os.cpu_count()} cores",
            f"- Memory: {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
            f"- GPU: {_gpu_model()}",
            f"- System: {platform.system()} {platform.release()}",
            f"- Versions: Python {platform.python_version()}, {packages}",
        ]
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(": ", 1)[1] for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _gpu_model() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def main() -> int:
    """Run them all; one that fails is reported and does not keep the others from running."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks that all run")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--directory", type=Path, default=HERE, help="where the benchmarks are")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="run these, and keep the other results"
    )
    parser.add_argument(
        "--take",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="run nothing: take what benchmarks printed elsewhere, and keep the other results",
    )
    parser.add_argument("--where", help="the machine and versions of what is taken")
    options = parser.parse_args()
    if options.take:
        return take(options.take, options.where, options.output)
    scripts = benchmarks(options.directory)
    earlier = results_by_title(options.output) if options.output.exists() else {}
    if options.only:
        scripts = [script for script in scripts if script.stem in options.only]
    results = [run(script, ["--quick"] if options.quick else []) for script in scripts]
    sections = dict(earlier) if options.only else {}
    for text in (section for _, output in results for section in sections_of(output)):
        title = _title(text)
        measured = NOT_MEASURED not in text.lower()
        sections[title] = text if measured else earlier.get(title, text)
    parts = ["# Results of `make bench`", machine(), *sections.values()]
    options.output.write_text("\n\n".join(parts) + "\n", "utf-8")
    progress(f"written to {options.output}")
    return 0 if all(well for well, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
