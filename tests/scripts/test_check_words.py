"""The word check finds a word in text and names, and only where its entry applies."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "check_words.py"))

WORDS = """
[[word]]
avoid = ["gizmo", "gizmos"]
use = "image"
allow = [{ pattern = "gizmo_mode", why = "a public option" }]

[[word]]
avoid = ["end blob"]
use = "stop string"

[[word]]
avoid = ["spire"]
use = "vision encoder"
scope = "prose"

[[word]]
avoid = ["spot"]
use = "index"
scope = "names"

[[word]]
avoid = ["guard"]
use = "middleware"
scope = "names"
files = "server/*"
"""


@pytest.fixture
def rules(tmp_path: Path) -> Any:
    """Return the rules of a small word list."""
    path = tmp_path / "words.toml"
    path.write_text(WORDS)
    return SCRIPT["read_rules"](path)


def found(text: str, path: str, rules: Any) -> list[tuple[int, int, str]]:
    return [
        (finding.line, finding.column, finding.word)
        for finding in SCRIPT["check_text"](text, path, rules)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "# a gizmo",
        "gizmo_size = 1",
        "num_gizmos = 1",
        "GIZMO = 1",
        "class Gizmo: ...",
        "class BigGizmo: ...",
        "bigGizmo = 1",
        "gizmoSize = 1",
        "text = 'gizmo'",
        "text = f'{number} Gizmos'",
        "# an end\n# blob",
        "class EndBlob: ...",
        "endBlob = end = 1",
        "end_blob = 1",
        "END_BLOB = 1",
    ],
)
def test_a_word_is_found_in_text_and_identifiers(text: str, rules: Any) -> None:
    assert len(found(text, "a.py", rules)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "# gizmology",
        "regizmo = 1",
        "agizmo = 1",
        "GIZMOS2 = GIZMOLOGY",
        "weekend blobs",
        "endblob",
    ],
)
def test_a_part_of_another_word_is_not_found(text: str, rules: Any) -> None:
    assert len(found(text, "a.md", rules)) == (1 if "GIZMOS2" in text else 0)


def test_prose_is_comments_docstrings_and_messages(rules: Any) -> None:
    source = '''"""A spire."""

spire = spires["spire"]  # a spire
"""The method ``spire`` of a Spire."""
message = f"the spire {spire} of vision.spire is missing"
'''
    assert found(source, "a.py", rules) == [
        (1, 6, "spire"),
        (3, 30, "spire"),
        (4, 30, "Spire"),
        (5, 17, "spire"),
    ]


def test_prose_of_markdown_is_not_its_code(rules: Any) -> None:
    page = """# The spire

`spire` and [a link](spire.md) with a
spire.

```python
spire = 1  # the spire
```
"""
    assert found(page, "a.md", rules) == [(1, 7, "spire"), (4, 1, "spire"), (7, 18, "spire")]


def test_names_are_identifiers_of_python(rules: Any) -> None:
    source = "spot = 'a spot'  # a spot\nfirst_spot = f'a spot {spot}'\n"
    assert found(source, "a.py", rules) == [(1, 1, "spot"), (2, 7, "spot"), (2, 24, "spot")]
    assert found(source, "a.js", rules) == []


def test_an_entry_may_be_about_some_files(rules: Any) -> None:
    assert found("guard = 1", "server/app.py", rules) == [(1, 1, "guard")]
    assert found("guard = 1", "cli/app.py", rules) == []


def test_an_allowance_covers_only_its_context(rules: Any) -> None:
    assert found("gizmo_mode = gizmo", "a.py", rules) == [(1, 14, "gizmo")]


def test_an_allowance_that_nothing_needs_is_listed(rules: Any) -> None:
    report = SCRIPT["Report"]()
    assert [unused.reason for unused in SCRIPT["unused_allowances"](rules, report)] == [
        "a public option"
    ]


def test_a_finding_shows_what_to_write(rules: Any) -> None:
    (finding,) = SCRIPT["check_text"]("a gizmo", "docs/a.md", rules)
    assert str(finding) == 'docs/a.md:1:3: "gizmo": write image'


def test_an_unknown_key_of_the_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.toml"
    path.write_text('[[word]]\navoid = ["gizmo"]\nwrite = "image"\n')
    with pytest.raises(KeyError, match="write"):
        SCRIPT["read_rules"](path)


def test_the_projects_list_can_be_read_and_each_allowance_has_a_reason() -> None:
    rules = SCRIPT["read_rules"](SCRIPT["WORD_LIST"])
    assert all(allowance.reason for rule in rules for allowance in rule.allowances)


def test_paths_limit_the_check() -> None:
    (file,) = SCRIPT["list_files"]([ROOT / "scripts" / "check_words.py"])
    assert file == ROOT / "scripts" / "check_words.py"
    assert SCRIPT["WORD_LIST"] not in set(SCRIPT["list_files"]([ROOT / "scripts"]))
