"""What is imported when nothing has been asked for: neither torch nor a plugin."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from vlcore.plugins.registry import installed_plugins

HEAVY = {"torch", "transformers", "accelerate", "safetensors", "numpy", "PIL", "huggingface_hub"}


def imported_modules(*arguments: str) -> set[str]:
    """Run Python and list the top-level names of all that it imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    lines = re.findall(r"^import time:.*\|\s*([\w.]+)$", done.stderr, re.MULTILINE)
    names = {line.split(".")[0] for line in lines}
    assert "vlcore" in names
    return names


def plugin_modules() -> set[str]:
    modules = {module for info in installed_plugins() for module in info.modules.values()}
    assert modules, "no plugin is installed, so there is nothing to find"
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import vlcore"),
        ("-c", "from vlcore import VlcoreError, hookimpl, __version__"),
        ("-m", "vlcore", "plugins"),
        ("-m", "vlcore", "plugins", "--json"),
        ("-m", "vlcore", "cache"),
        ("-m", "vlcore", "--help"),
        ("-m", "vlcore", "--version"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments: tuple[str, ...]) -> None:
    assert imported_modules(*arguments) & (HEAVY | plugin_modules()) == set()


def test_the_measurement_sees_a_plugin() -> None:
    module = sorted(plugin_modules())[0]
    assert module in imported_modules("-c", f"import {module}")


def test_a_plugin_module_imports_no_torch() -> None:
    for module in plugin_modules():
        assert imported_modules("-c", f"import {module}") & HEAVY == set()


@pytest.mark.slow
def test_the_measurement_sees_a_name_that_needs_torch() -> None:
    assert "torch" in imported_modules("-c", "from vlcore import ImageRows")
