"""``vlcore doctor``: check the installation, and whether a model can run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlcore.cli.options import Device, Dtype, Plugin, Revision, TemplateName
from vlcore.cli.terminal import echo

if TYPE_CHECKING:
    from vlcore.cli.doctor.installation import Finding


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint directory or Hub repo id to check in addition to the installation."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    plugin: Plugin = None,
    chat_template: TemplateName = None,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check the installation, and whether a model can run on this machine.

    For a model, its plugin, engine and memory are checked without reading weights. The exit code is
    1 if there is a problem.
    """
    from vlcore.cli.doctor.installation import Verdict, diagnose

    findings = list(diagnose())
    if model is not None:
        findings += _model_findings(
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
        echo(json.dumps({"ok": is_ok, "findings": [_as_json(f) for f in findings]}, indent=2))
    else:
        _print(findings)
    if not is_ok:
        raise typer.Exit(1)


def _model_findings(findings: Iterable[Finding], model: str, **options: Any) -> Iterator[Finding]:
    from vlcore.cli.doctor.installation import Finding, Verdict

    if any(finding.topic == "torch" and finding.verdict is Verdict.PROBLEM for finding in findings):
        text = f"{model} was not checked, because torch cannot be imported"
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

    symbols = {"fine": ("green", "✓"), "note": ("yellow", "!"), "problem": ("bold red", "✗")}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    last_topic = ""
    for finding in findings:
        style, symbol = symbols[finding.verdict]
        topic = "" if finding.topic == last_topic else finding.topic
        last_topic = finding.topic
        text_style = "" if style == "green" else style
        table.add_row(Text(symbol, style), topic, Text(finding.text, text_style))
    Console(highlight=False).print(table)
