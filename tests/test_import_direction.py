"""Data flows one way: no module imports one that stands above it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlcore

PACKAGE = Path(vlcore.__file__).parent

ORDER = (
    "_version",
    "_quiet",
    "_progress",
    "_threads",
    "errors",
    "settings",
    "checkpoint_files",
    "spreading",
    "placement",
    "hookspecs",
    "installed",
    "plugins",
    "vocabulary",
    "weights",
    "checkpoint",
    "header_checkpoint",
    "vision",
    "regions",
    "template",
    "jinja_template",
    "prompt",
    "prompt_limits",
    "shard_file",
    "view_config",
    "view_manifest",
    "view_plan",
    "view",
    "language",
    "view_cache",
    "clip.tower",
    "clip.resize",
    "clip.images",
    "clip.projector",
    "clip.source",
    "clip.vision",
    "clip",
    "flat_layout",
    "loading",
    "image_limits",
    "image_access",
    "addresses",
    "download",
    "media",
    "conversation",
    "cache",
    "turns",
    "encoder_stats",
    "tower_graphs",
    "replica",
    "forward",
    "preparation",
    "image_queue",
    "devices",
    "encoder",
    "explanation",
    "row_file",
    "_loop",
    "engines",
    "engines.generation",
    "engines.base",
    "engines.detokenizer",
    "engines.ends",
    "engines.sampler",
    "engines.sequence",
    "engines.waiting",
    "engines.slots",
    "engines.batch",
    "engines.quantization",
    "engines.transformers",
    "engines.turbomind_support",
    "engines.turbomind_options",
    "engines.turbomind_prompt",
    "engines.turbomind_answer",
    "engines.turbomind_runs",
    "engines.turbomind_self_test",
    "engines.turbomind",
    "engines.choice",
    "response",
    "road",
    "pipeline",
    "server",
    "server.settings",
    "server.log",
    "server.api_error",
    "server.admission",
    "server.schema",
    "server.question",
    "server.metrics",
    "server.answer",
    "server.protocol",
    "server.exchange",
    "server.guard",
    "server.openapi",
    "server.page",
    "server.app",
    "server.serving",
    "diagnosis",
    "model_diagnosis",
    "scaffold",
    "testing.failure",
    "testing.report",
    "testing.pictures",
    "testing.encoding",
    "testing.reference",
    "testing.siblings",
    "testing.observer",
    "testing.watch",
    "testing.subject",
    "testing.check",
    "testing.checks.*",
    "testing.checks",
    "testing.runner",
    "testing.conformance",
    "testing",
    "cli.options",
    "cli.*",
    "cli",
    "__main__",
)
"""Lowest first; ``.*`` stands for the modules of a package, which do not import each other."""

FACE = "__init__"
"""The public face stands above all, and only the command line looks at it."""
MAY_USE_FACE = ("cli", "cli.*", "__main__")

ANNOTATES_UPWARDS = ("hookspecs", "plugins")
"""Their annotations name the types that hooks pass, under ``if TYPE_CHECKING``."""

FAMILIES = re.compile(
    r"llava|qwen|yi[-_ ]?vl|\byi\b|intern[-_ ]?(vl|vit|lm-x)|opengvlab|minicpm|cogvlm|deepseek|"
    r"phi[-_ ]?3|idefics|paligemma|blip|molmo|pixtral|kosmos|fuyu|siglip",
    re.IGNORECASE,
)


def module_names(package: Path) -> dict[str, Path]:
    """Name every module below the package, as ``engines.base``."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        inner = parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts
        names[".".join(inner)] = path
    return names


def imports_of(path: Path, name: str, known: set[str]) -> Iterator[str]:
    """Name the modules of the package that a file imports, inside functions too."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if for_types and name in ANNOTATES_UPWARDS:
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "vlcore":
                    yield alias.name.removeprefix("vlcore").removeprefix(".") or FACE
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, name, is_package=path.name == "__init__.py")
            if source.split(".")[0] != "vlcore":
                continue
            module = source.removeprefix("vlcore").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                yield inner if inner in known else module or FACE


def _absolute(node: ast.ImportFrom, name: str, *, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    here = ["vlcore", *(name.split(".") if name != FACE else [])]
    up = node.level - (is_package and name != FACE) - (name == FACE)
    return ".".join([*here[: len(here) - up], *filter(None, [node.module])])


def rank(name: str) -> int | None:
    """Give a module's place in the order."""
    if name in ORDER:
        return ORDER.index(name)
    group = f"{name.rpartition('.')[0]}.*"
    return ORDER.index(group) if group in ORDER else None


def violations(package: Path) -> list[str]:
    """List the arrows that run back, and the modules that nobody gave a place."""
    names = module_names(package)
    found = []
    for name, path in names.items():
        own = rank(name)
        if name == FACE:
            continue
        if own is None:
            found.append(f"{name} has no place in the order")
            continue
        for imported in imports_of(path, name, set(names)):
            if imported == FACE:
                if ORDER[own] not in MAY_USE_FACE:
                    found.append(f"{name} imports the public face")
                continue
            other = rank(imported)
            if other is None or other >= own:
                found.append(f"{name} imports {imported}")
    return found


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


def write_package(directory: Path, **sources: str) -> Path:
    for name, source in {"__init__": "", **sources}.items():
        path = directory.joinpath(*name.split("__in__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return directory


def test_no_arrow_runs_back() -> None:
    assert violations(PACKAGE) == []


def test_the_order_names_no_module_twice() -> None:
    assert len(ORDER) == len(set(ORDER))


def test_the_order_names_no_module_that_is_gone() -> None:
    names = module_names(PACKAGE)
    gone = [entry for entry in ORDER if not entry.endswith(".*") and entry not in names]
    assert gone == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from vlcore.pipeline import Pipeline", "vision imports pipeline"),
        ("import vlcore.pipeline", "vision imports pipeline"),
        ("from vlcore import pipeline", "vision imports pipeline"),
        ("from .pipeline import Pipeline", "vision imports pipeline"),
        ("from . import pipeline", "vision imports pipeline"),
        ("def late():\n    import vlcore.pipeline as p", "vision imports pipeline"),
        ("if TYPE_CHECKING:\n    import vlcore.pipeline", "vision imports pipeline"),
        ("import vlcore.vision", "vision imports vision"),
        ("from vlcore import VisionModel", "vision imports the public face"),
        ("import vlcore", "vision imports the public face"),
        ("import vlcore.unheard_of", "vision imports unheard_of"),
    ],
)
def test_an_arrow_that_runs_back_is_seen(tmp_path: Path, source: str, expected: str) -> None:
    package = write_package(tmp_path / "vlcore", errors="", vision=source, pipeline="")
    assert violations(package) == [expected]


@pytest.mark.parametrize(
    "sources",
    [
        {"errors": "", "vision": "import torch\nfrom vlcore.errors import VlcoreError"},
        {"errors": "", "vision": "from . import errors"},
        {"errors": "", "hookspecs": "if TYPE_CHECKING:\n    import vlcore.vision", "vision": ""},
        {"cli__in__chat": "import vlcore", "pipeline": ""},
        {"cli__in____init__": "from vlcore.cli import chat", "cli__in__chat": "from .. import x"},
        {"engines__in__base": "", "engines__in__sampler": "from .base import x"},
    ],
)
def test_an_arrow_that_runs_down_is_fine(tmp_path: Path, sources: dict[str, str]) -> None:
    assert violations(write_package(tmp_path / "vlcore", **sources)) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"gadgets": ""}, "gadgets has no place in the order"),
        ({"engines__in__gadgets": ""}, "engines.gadgets has no place in the order"),
        ({"cli__in__chat": "import vlcore.cli", "cli__in____init__": ""}, "cli.chat imports cli"),
        ({"cli__in__a": "import vlcore.cli.b", "cli__in__b": ""}, "cli.a imports cli.b"),
        ({"hookspecs": "import vlcore.vision", "vision": ""}, "hookspecs imports vision"),
    ],
)
def test_a_module_out_of_place_is_seen(
    tmp_path: Path, sources: dict[str, str], expected: str
) -> None:
    assert violations(write_package(tmp_path / "vlcore", **sources)) == [expected]


def test_the_core_names_no_model_family() -> None:
    named = [hit for path in module_names(PACKAGE).values() for hit in named_families(path)]
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
