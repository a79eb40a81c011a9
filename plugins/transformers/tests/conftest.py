"""Packages that only some families need, and the count of families that equal transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers_families.families import FAMILIES


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the directory of unpacked packages."""
    parser.addoption(
        "--optional-packages",
        type=Path,
        help="directory with unpacked packages that some families of transformers need",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the packages importable before anything imports transformers."""
    if directory := config.getoption("--optional-packages", default=None):
        from transformers_families.optional_packages import add_packages  # imports torch

        add_packages(directory)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many families answered as transformers does."""
    passed = terminalreporter.stats.get("passed", [])
    names = {
        name for report in passed for key, name in report.user_properties if key == "equal_family"
    }
    if names:
        num_plain = sum(not FAMILIES[name].requires for name in names)
        terminalreporter.write_line(
            f"{len(names)} families are equal to transformers end to end, {num_plain} of them "
            f"without further packages: {', '.join(sorted(names))}"
        )
