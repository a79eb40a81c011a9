"""The messages that the page on troubleshooting quotes are those of the source."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

import pytest
from documents import ROOT

from vlcore import errors

PAGE = ROOT / "docs" / "troubleshooting.md"
QUOTED = re.findall(r"^- \*\*`(.+)`\*\* \(`(\w+)`\)\\$", PAGE.read_text("utf-8"), re.MULTILINE)
VALUE = "…"


def texts_of_the_source() -> Iterator[str]:
    """Every text in vlcore, with an ellipsis instead of each value."""
    for file in (ROOT / "vlcore").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else VALUE
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEXTS = list(texts_of_the_source())


def test_the_page_quotes_messages() -> None:
    terms = re.findall(r"^- \*\*.*$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(terms) == len(QUOTED) > 40
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize(("message", "error"), QUOTED, ids=[message for message, _ in QUOTED])
def test_a_quoted_message_is_in_the_source(message: str, error: str) -> None:
    begins = message.removesuffix(VALUE).rstrip()
    assert any(text.startswith(begins) for text in TEXTS)
    assert hasattr(errors, error) or hasattr(builtins, error)
