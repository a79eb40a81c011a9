"""Builds every distribution, and answers the demo's questions from the wheels alone.

The wheels go into a new environment, with their dependencies from pip's index; or, which takes
seconds instead of minutes, with the ones that are installed here (``--reuse-dependencies``).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
_PAGE = (".html", ".js", ".css", ".svg")
_OURS = ("vlcore", "vl_plugin_", "_editable_impl_", "__editable__")


def main() -> None:
    """Build and check the wheels; exits with code 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reuse-dependencies", action="store_true")
    parser.add_argument("--out", type=Path, help="keep the checked distributions in this directory")
    options = parser.parse_args()
    reuses = options.reuse_dependencies
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        wheels = build(folder / "dist")
        scripts = install(wheels, folder / "environment", reuses=reuses)
        check_plugins(scripts, folder)
        check_page(scripts, folder)
        compare_answers(scripts, folder)
        if options.out is not None:
            shutil.copytree(folder / "dist", options.out, dirs_exist_ok=True)
    print(f"{len(wheels)} wheels answer the questions of the demo")


def build(directory: Path) -> list[Path]:
    """Build a wheel and a source distribution of each, and check them with twine."""
    for distribution in DISTRIBUTIONS:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, distribution)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(directory.iterdir()))
    return sorted(directory.glob("*.whl"))


def install(wheels: list[Path], environment: Path, *, reuses: bool) -> Path:
    """Install the wheels into a new environment and return the directory of its scripts."""
    venv.create(environment, with_pip=True)
    scripts = environment / "bin"
    pip: list[str | Path] = [scripts / "python", "-m", "pip", "install", "--quiet"]
    if not reuses:
        run(*pip, "--constraint", ROOT / "constraints.txt", *wheels)
        return scripts
    run(*pip, "--no-deps", "--no-index", *wheels)
    dependencies = environment / "dependencies"
    dependencies.mkdir()
    installed = Path(sysconfig.get_path("purelib"))
    for entry in installed.iterdir():
        if not entry.name.startswith(_OURS):
            (dependencies / entry.name).symlink_to(entry)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return scripts


def check_plugins(scripts: Path, folder: Path) -> None:
    """Check that vlcore is imported from the wheels and that every plugin is ready."""
    home = run(scripts / "python", "-c", "import vlcore; print(vlcore.__file__)", cwd=folder)
    if not Path(home.strip()).is_relative_to(scripts.parent):
        sys.exit(f"vlcore is imported from {home.strip()}, not from its wheel")
    plugins = json.loads(run(scripts / "vlcore", "plugins", "--load", "--json", cwd=folder))
    states = {plugin["distribution"]: plugin["state"] for plugin in plugins}
    if len(states) != len(DISTRIBUTIONS) - 1 or set(states.values()) != {"ready"}:
        sys.exit(f"{len(DISTRIBUTIONS) - 1} plugins should be ready; they are {states}")
    for plugin in states:
        run(scripts / "vlcore", "check", plugin, cwd=folder)


def check_page(scripts: Path, folder: Path) -> None:
    """Check that the wheel contains every file of the web page and the API reference."""
    server_folder = ROOT / "vlcore" / "server"
    expected = sorted(path.name for path in server_folder.rglob("*") if path.suffix in _PAGE)
    program = (
        "from pathlib import Path; import vlcore.server as server; home = Path(server.__file__);"
        f"print(sorted(p.name for p in home.parent.rglob('*') if p.suffix in {_PAGE!r}))"
    )
    actual = run(scripts / "python", "-c", program, cwd=folder).strip()
    if actual != str(expected) or not expected:
        sys.exit(f"the wheel contains the page's files {actual}; it should contain {expected}")


def compare_answers(scripts: Path, folder: Path) -> None:
    """Compare the output of the demo from the wheels with that from the sources."""
    demo = shutil.copytree(ROOT / "demo", folder / "demo")
    expected = run(sys.executable, demo / "run.py", cwd=folder)
    actual = run(scripts / "python", demo / "run.py", cwd=folder)
    if actual != expected or not actual:
        sys.exit(f"the demo prints, from the wheels:\n{actual}\nfrom the sources:\n{expected}")
    print(actual)


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return its output; exits if the command fails."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    print("+", *command, flush=True)
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{command[0]} ended with exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    main()
