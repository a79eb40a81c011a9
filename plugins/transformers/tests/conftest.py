"""Packages that only some families need, and the count of families that equal transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers_families.families import FAMILIES
from transformers_families.page import PAGE, write_page
from vl_plugin_transformers.families import FAMILIES as SERVED


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the directory of unpacked packages."""
    parser.addoption(
        "--optional-packages",
        type=Path,
        help="directory with unpacked packages that some families of transformers need",
    )
    parser.addoption(
        "--families-page", action="store_true", help="write the documentation's page of families"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the packages importable before anything imports transformers."""
    if directory := config.getoption("--optional-packages", default=None):
        from transformers_families.optional_packages import add_packages  # imports torch

        add_packages(directory)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many families answered as transformers does, and write the page of families."""
    facts: dict[str, dict[str, Any]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for key, values in report.user_properties:
            if key == "family":
                facts.setdefault(values["name"], {}).update(values)
    names = sorted(name for name, values in facts.items() if "positions" in values)
    if not names:
        return
    num_plain = sum(not FAMILIES[name].requires for name in names)
    terminalreporter.write_line(
        f"{len(names)} families are equal to transformers end to end, {num_plain} of them "
        f"without further packages: {', '.join(names)}"
    )
    if terminalreporter.config.getoption("--families-page", default=False):
        if incomplete := sorted(
            name
            for name in SERVED
            if not {"positions", "architecture"} <= facts.get(name, {}).keys()
        ):
            terminalreporter.write_line(f"{PAGE} is not written without {', '.join(incomplete)}")
        else:
            write_page(facts)
