"""``vlcore doctor``: whether an installation works, and whether a model will."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlcore.cli.options import Device, Dtype, Plugin, Revision, TemplateName

if TYPE_CHECKING:
    from vlcore.cli.doctor.installation import Finding


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint directory or hub id to look at as well.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    plugin: Plugin = None,
    chat_template: TemplateName = None,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the installation and, of a model, plugin, engine and memory; no weights are read.

    Ends with exit code 1 if something does not work.
    """
    from vlcore.cli.doctor.installation import Verdict, diagnose

    findings = list(diagnose())
    if model is not None:
        findings += _of_model(
            findings,
            model,
            device=device,
            dtype=dtype,
            plugin=plugin,
            chat_template=chat_template,
            revision=revision,
        )
    is_ok = all(finding.verdict is not Verdict.PROBLEM for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": is_ok, "findings": [_as_json(f) for f in findings]}, indent=2))
    else:
        _print(findings)
    if not is_ok:
        raise typer.Exit(1)


def _of_model(findings: Iterable[Finding], model: str, **options: Any) -> Iterator[Finding]:
    from vlcore.cli.doctor.installation import Finding, Verdict

    if any(found.topic == "torch" and found.verdict is Verdict.PROBLEM for found in findings):
        text = f"{model} was not looked at, because torch cannot be imported"
        yield Finding("checkpoint", Verdict.PROBLEM, text)
        return
    from vlcore.cli.doctor.model import diagnose_model

    yield from diagnose_model(model, **options)


def _as_json(finding: Finding) -> dict[str, object]:
    return {
        "topic": finding.topic,
        "verdict": str(finding.verdict),
        "text": finding.text,
        "facts": dict(finding.facts),
    }


def _print(findings: Iterable[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    looks = {"fine": ("green", "✓"), "note": ("yellow", "!"), "problem": ("bold red", "✗")}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    last = ""
    for finding in findings:
        style, mark = looks[finding.verdict]
        topic = "" if finding.topic == last else finding.topic
        last = finding.topic
        plain = "" if style == "green" else style
        table.add_row(Text(mark, style), topic, Text(finding.text, plain))
    Console(highlight=False).print(table)
