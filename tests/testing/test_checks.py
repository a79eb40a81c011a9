"""The list of the checks, here and in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlcore.testing import CHECKS, Check

DOCUMENT = Path(__file__).parents[2] / "docs" / "testing.md"


def test_the_docs_list_every_check_in_order_and_in_the_same_words() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    names = {one.name for one in CHECKS}
    assert [row for row in rows if row[0] in names] == [(one.name, one.about) for one in CHECKS]


def test_names_are_kept_apart() -> None:
    names = [one.name for one in CHECKS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("one", CHECKS, ids=lambda one: one.name)
def test_a_check_is_named_and_described_in_a_line(one: Check) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", one.name)
    assert 0 < len(one.about) <= 90
    assert not one.about.endswith(".")
