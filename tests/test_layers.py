"""The core's packages keep to their layers, and no module of the core names a model family."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vlcore

PACKAGE = Path(vlcore.__file__).parent
ROOT = Path(__file__).parents[1]
MAX_TOP_LEVEL_MODULES = 10

FAMILIES = re.compile(
    r"llava|qwen|yi[-_ ]?vl|\byi\b|intern[-_ ]?(vl|vit|lm-x)|opengvlab|minicpm|cogvlm|deepseek|"
    r"phi[-_ ]?3|idefics|paligemma|blip|molmo|pixtral|kosmos|fuyu|siglip",
    re.IGNORECASE,
)


def imports_public_names(path: Path) -> bool:
    """Whether a module imports names of ``vlcore`` itself, which are above every layer."""
    return any(
        (isinstance(node, ast.Import) and any(alias.name == "vlcore" for alias in node.names))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "vlcore"
            and not all((PACKAGE / f"{alias.name}.py").is_file() for alias in node.names)
        )
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
    )


def named_families(path: Path) -> list[str]:
    """List the model families that code names; docstrings and comments may name examples."""
    tree = ast.parse(path.read_text("utf-8"))
    words: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.append((node.lineno, node.value))
        elif isinstance(node, ast.Name):
            words.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute):
            words.append((node.lineno, node.attr))
        elif isinstance(node, ast.arg):
            words.append((node.lineno, node.arg))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.alias):
            words.append((node.lineno, node.name))
    bare_strings = {
        node.value.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        f"{path.name}:{line} names {found[0]}"
        for line, word in words
        if line not in bare_strings and (found := FAMILIES.search(word))
    ]


def test_every_package_imports_only_from_lower_layers() -> None:
    # In a process of its own: import-linter reconfigures logging.
    linter = Path(sys.executable).with_name("lint-imports")
    command: list[str | Path] = [linter, "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_only_the_command_line_imports_the_public_names() -> None:
    importing = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if imports_public_names(path)
    }
    assert importing <= {"cli"}


def test_few_modules_are_next_to_the_packages() -> None:
    modules = [path.name for path in PACKAGE.glob("*.py")]
    assert len(modules) <= MAX_TOP_LEVEL_MODULES, modules


def test_the_core_names_no_model_family() -> None:
    named = [hit for path in PACKAGE.rglob("*.py") for hit in named_families(path)]
    assert named == []


@pytest.mark.parametrize(
    "source",
    [
        "if architecture == 'LlavaLlamaForCausalLM': pass",
        "def load_qwen(): pass",
        "x = f'{name}-Yi-VL'",
        "qwen_rows = 256",
        "from models import internvl",
    ],
)
def test_a_family_in_code_is_seen(tmp_path: Path, source: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert len(named_families(path)) == 1


def test_a_family_in_a_docstring_is_an_example(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text('"""Such as LLaVA."""\n\n\ndef load():  # or Qwen\n    """Not Yi-VL."""\n')
    assert named_families(path) == []
