"""A release is published only if its tag, its version and the changelog agree."""

from __future__ import annotations

import runpy

import pytest
from documents import ROOT

release_notes = runpy.run_path(str(ROOT / "scripts" / "release_notes.py"))["release_notes"]

CHANGELOG = """# Changelog

## [Unreleased]

## [0.2.0] - 2026-03-01

### Added

- Two.

## [0.1.0] - 2026-01-31

- One.

[0.1.0]: https://example.org/v0.1.0
"""


def test_the_notes_are_the_section_of_the_version() -> None:
    assert release_notes("v0.2.0", "0.2.0", CHANGELOG) == "### Added\n\n- Two."
    assert release_notes("v0.1.0", "0.1.0", CHANGELOG) == "- One."


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "message"),
    [
        ("v0.1.0", "0.2.0", CHANGELOG, "so v0.2.0"),
        ("0.2.0", "0.2.0", CHANGELOG, "so v0.2.0"),
        ("v0.3.0", "0.3.0", CHANGELOG, r"no section \[0.3.0\]"),
        ("v0.2.0", "0.2.0", CHANGELOG.replace(" - 2026-03-01", ""), "expected a date"),
        (
            "v0.2.0",
            "0.2.0",
            CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n"),
            r"under \[Unreleased\]",
        ),
    ],
)
def test_a_release_that_is_not_ready_is_refused(
    tag: str, version: str, changelog: str, message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        release_notes(tag, version, changelog)
