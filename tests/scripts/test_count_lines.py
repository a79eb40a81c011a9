"""Lines are counted by the rule that the page states, and the page is true."""

from __future__ import annotations

import re
import runpy

import pytest
from documents import ROOT, blocks_of

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "count_lines.py"))
PAGE = (ROOT / "docs" / "lines.md").read_text("utf-8")
OWN = re.findall(r"^\| ([^|]+) \| (\d+) in (\d+) files \|", PAGE, re.MULTILINE)
TOLERANCE = 0.1  # a page need not follow every line that a plugin gains

SOURCE = '''"""A docstring
of two lines."""

import os  # 1

# a comment


class Thing:  # 2
    """One line."""

    size: int = 3  # 3
    """Of an attribute."""

    text = """
    four lines that
    count
    """  # 4 to 7

    def call(  # 8
        self,
    ):  # 9, 10
        """A docstring."""
        return os.sep  # 11
'''


def test_blank_lines_comments_and_docstrings_do_not_count() -> None:
    assert SCRIPT["count_lines"](SOURCE) == 11
    assert SCRIPT["count_lines"]('"""Only that."""\n') == 0


@pytest.mark.parametrize(("family", "lines", "files"), OWN[:-1], ids=[row[0] for row in OWN[:-1]])
def test_the_page_has_the_numbers_of_the_plugins(family: str, lines: str, files: str) -> None:
    parts = SCRIPT["FAMILIES"][family]
    own = next(iter(parts))
    counted, num_files = SCRIPT["count_files"](ROOT, parts[own])
    assert num_files == int(files)
    assert counted == pytest.approx(int(lines), rel=TOLERANCE)


def test_every_plugin_is_on_the_page() -> None:
    named = {package for parts in SCRIPT["FAMILIES"].values() for package in parts}
    projects = [path.read_text() for path in (ROOT / "plugins").glob("*/pyproject.toml")]
    names = {found[1] for text in projects if (found := re.search(r'^name = "(.+)"', text, re.M))}
    assert names <= named
    assert [row[0] for row in OWN[:-1]] == list(SCRIPT["FAMILIES"])


def test_the_page_has_the_number_of_the_tutorial() -> None:
    blocks = blocks_of([ROOT / "docs" / "tutorial.md"])
    files = [block.text for block in blocks if (block.file or "").startswith("vl_plugin_mosaic/")]
    counted = sum(map(SCRIPT["count_lines"], files))
    assert (str(counted), str(len(files))) == OWN[-1][1:]
