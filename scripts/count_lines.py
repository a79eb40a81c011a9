"""Counts the lines of code that a model family takes, here and in other engines, as a table.

A line counts if it contains code: blank lines, comments and docstrings do not. Packages that are
not installed are left out; ``--package FOLDER`` adds one from elsewhere, such as lmdeploy's.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = {
    "LLaVA 1.5 and 1.6": {
        "vl-plugin-llava": ["plugins/llava/vl_plugin_llava/*.py"],
        "transformers": ["models/llava/*.py", "models/llava_next/*.py"],
        "lmdeploy": ["vl/model/llava*.py", "pytorch/models/llava.py"],
    },
    "Qwen-VL": {"vl-plugin-qwen": ["plugins/qwen_vl/vl_plugin_qwen/*.py"]},
    "Yi-VL": {"vl-plugin-yi": ["plugins/yi_vl/vl_plugin_yi/*.py"]},
    "49 families of transformers": {
        "vl-plugin-transformers": ["plugins/transformers/vl_plugin_transformers/*.py"]
    },
    "shared by families with a CLIP vision encoder": {
        "vlcore": ["vlcore/clip/*.py", "vlcore/flat_layout.py"],
        "transformers": ["models/clip/modeling_clip.py", "models/clip/*processing_*clip.py"],
    },
}
"""The files of a family by package; those of the project itself from its root."""
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def count_lines(source: str) -> int:
    """Count the lines of a Python file that contain code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in _docstrings(ast.parse(source)):
        lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def count_files(root: Path, patterns: Iterable[str]) -> tuple[int, int]:
    """Count lines and files."""
    files = sorted({file for pattern in patterns for file in root.glob(pattern)})
    return sum(count_lines(file.read_text("utf-8")) for file in files), len(files)


def _docstrings(tree: ast.Module) -> Iterator[ast.Expr]:
    """Find string literals that are statements, such as docstrings."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                yield node


def _packages(folders: Iterable[Path]) -> dict[str, tuple[str, Path]]:
    """Return the title and the directory of each package that is installed."""
    found = {}
    spec = find_spec("transformers")
    if spec is not None and spec.origin is not None:
        title = f"transformers {version('transformers')}"
        found["transformers"] = (title, Path(spec.origin).parent)
    for folder in folders:
        found[folder.name] = (f"{folder.name} {_version_of(folder)}", folder)
    return found


def _version_of(folder: Path) -> str:
    for info in folder.parent.glob(f"{folder.name}-*.dist-info"):
        return re.sub(r"^[^-]+-|\.dist-info$", "", info.name)
    try:
        return version(folder.name)
    except PackageNotFoundError:
        return ""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, action="append", default=[], metavar="FOLDER")
    packages = _packages(parser.parse_args().package)
    print("| family | vlcore |", *(f"{title} |" for title, _ in packages.values()))
    print("| :-- |" + " --: |" * (1 + len(packages)))
    for family, parts in FAMILIES.items():
        cells = []
        own = next(name for name in parts if name not in ("transformers", "lmdeploy"))
        for name, root in [(own, ROOT), *((name, packages[name][1]) for name in packages)]:
            lines, files = count_files(root, parts.get(name, []))
            cells.append(f"{lines} in {files} files" if files else "none")
        print(f"| {family} |", *(f"{cell} |" for cell in cells))


if __name__ == "__main__":
    main()
