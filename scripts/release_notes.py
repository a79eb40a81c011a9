"""Prints the section of CHANGELOG.md that a release tag names, in Markdown.

It ends with an error where the tag, ``vlcore/_version.py`` and the changelog do not agree.
"""

from __future__ import annotations

import argparse
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SECTION = re.compile(r"^## \[([^\]]+)\](.*)$", re.MULTILINE)
_LINK = re.compile(r"^\[[^\]]+\]: .*$", re.MULTILINE)
_DATE = re.compile(r" - \d{4}-\d{2}-\d{2}")


def main() -> None:
    """Print the notes of the tag given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag", help="such as v0.1.0")
    tag = parser.parse_args().tag
    version = runpy.run_path(str(ROOT / "vlcore" / "_version.py"))["__version__"]
    print(release_notes(tag, version, (ROOT / "CHANGELOG.md").read_text("utf-8")))


def release_notes(tag: str, version: str, changelog: str) -> str:
    """Return the changelog's section of a version.

    Raises:
        SystemExit: the tag names another version, or the changelog is not ready for it.
    """
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}; vlcore/_version.py states {version}, so v{version}")
    changelog = _LINK.sub("", changelog)
    headings = list(_SECTION.finditer(changelog))
    ends = [*(heading.start() for heading in headings[1:]), len(changelog)]
    bodies = {
        heading[1]: (heading[2], changelog[heading.end() : end].strip())
        for heading, end in zip(headings, ends, strict=True)
    }
    if version not in bodies:
        raise SystemExit(f"CHANGELOG.md has no section [{version}]; it has {list(bodies)}")
    date, notes = bodies[version]
    if not _DATE.fullmatch(date):
        raise SystemExit(f"CHANGELOG.md: expected a date, as in '## [{version}] - 2026-01-31'")
    if bodies.get("Unreleased", ("", ""))[1]:
        raise SystemExit(f"CHANGELOG.md: move what is under [Unreleased] to [{version}]")
    return notes


if __name__ == "__main__":
    main()
