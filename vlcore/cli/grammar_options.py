"""The options of ``vlcore chat`` for the form of a response."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from vlcore.engines.grammar import Grammar

JsonSchema: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="File with a JSON schema. Responses are JSON that is valid for it.",
    ),
]
Regex: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN", help="Regular expression that the whole of each response matches."
    ),
]
Choices: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--choice", metavar="TEXT", help="Text that a response may be; repeat it for each choice."
    ),
]


def read_grammar(
    json_schema: Path | None, regex: str | None, choices: list[str] | None
) -> Grammar | None:
    """Return the grammar that the options state, or ``None`` without any of them.

    Raises:
        GrammarError: the schema, the regular expression or the choices are invalid.
        typer.BadParameter: several of the options are given, or the file cannot be read.
    """
    from vlcore.engines.grammar import MAX_GRAMMAR_BYTES, Grammar

    if sum([json_schema is not None, regex is not None, bool(choices)]) > 1:
        raise typer.BadParameter("--json-schema, --regex and --choice exclude each other")
    if json_schema is not None:
        try:
            with json_schema.open("rb") as file:
                text = file.read(MAX_GRAMMAR_BYTES + 1).decode("utf-8-sig", errors="replace")
        except OSError as error:
            raise typer.BadParameter(f"--json-schema cannot read {json_schema}: {error}") from error
        return Grammar.json_schema(text)
    if regex is not None:
        return Grammar.regex(regex)
    return Grammar.choice(choices) if choices else None
