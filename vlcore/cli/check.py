"""``vlcore check``: whether a plugin keeps the contract, check by check."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlcore.cli.options import Device, Plugin

if TYPE_CHECKING:
    from vlcore.testing import Report, Result


def check(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="PACKAGE_OR_MODEL",
            help="An installed plugin, or else a checkpoint directory or hub id.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The checkpoint to check PACKAGE with; without one, the package alone."),
    ] = None,
    plugin: Plugin = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Run this check; may be repeated.")
    ] = None,
    excuse: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=REASON", help="A check that may fail; may be repeated."),
    ] = None,
    serves: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A known model that the plugin serves; may be repeated."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Values of another implementation to compare with."),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    list_checks: Annotated[bool, typer.Option("--list", help="List the checks and stop.")] = False,
) -> None:
    """Check a plugin: its package alone, or with a checkpoint, best a tiny one.

    Ends with exit code 1 if a check fails.
    """
    from vlcore.testing import CHECKS, check_plugin

    if list_checks:
        _print_list(CHECKS, as_json=as_json)
        return
    if target is None:
        raise typer.BadParameter("name an installed plugin or a model (or --list)")
    package, model = _read_target(target, model, plugin)
    with _progress(len(CHECKS), shown=sys.stderr.isatty()) as advance:
        report = check_plugin(
            model,
            plugin=package,
            excused=_read_excuses(excuse or ()),
            only=only or (),
            reference=reference,
            serves=serves or (),
            device=device,
            dtype=dtype,
            on_result=lambda _: advance(),
        )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _read_target(
    target: str, model: str | None, plugin: str | None
) -> tuple[str | None, str | None]:
    """Tell a plugin's distribution from a model; give the plugin and the model.

    Raises:
        OptionError: it is neither, or two plugins or models are named.
    """
    from packaging.utils import canonicalize_name

    from vlcore.errors import OptionError
    from vlcore.plugins.registry import installed_plugins

    installed = [info.distribution for info in installed_plugins()]
    if canonicalize_name(target) in map(canonicalize_name, installed):
        if plugin is not None:
            raise OptionError(f"{target} is a plugin already: leave --plugin {plugin} out")
        return target, model
    if model is not None or not ("/" in target or Path(target).is_dir()):
        raise OptionError(
            f"{target!r} is no installed plugin ({', '.join(installed) or 'none is installed'})"
            + ("" if model is not None else ", and neither a directory nor a hub id")
        )
    return plugin, target


def _read_excuses(excuses: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=REASON``; what is missing, the kit says."""
    return {name: reason for name, _, reason in (one.partition("=") for one in excuses)}


def _progress(total: int, *, shown: bool) -> Any:
    from vlcore._utils.progress import progress_bar

    return progress_bar(total, description="checking", unit="check", shown=shown)


def _print_list(checks: Sequence[Any], *, as_json: bool) -> None:
    if as_json:
        values = [
            {"name": one.name, "about": one.about, "needs_model": one.needs_model} for one in checks
        ]
        typer.echo(json.dumps(values, indent=2))
        return
    width = max(len(one.name) for one in checks)
    for one in checks:
        typer.echo(f"{one.name:{width}}  {one.about}")


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vlcore.testing.report import summary_of

    console = Console(highlight=False, markup=False, soft_wrap=True)
    title = f"{report.plugin} {report.version}"
    console.print(f"{title} with {report.model}\n" if report.model else f"{title}\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    for result in report.results:
        style, mark = _look(result)
        table.add_row(Text(mark, style), result.name, Text(result.about, "dim"))
    console.print(table, soft_wrap=False)
    for result in report.results:
        if result.failure is None and result.outcome != "not run":
            continue
        style, _ = _look(result)
        console.print(Text(f"\n{result.name} {result.outcome}", style))
        console.print(f"  {result.message}".replace("\n", "\n  "))
    console.print()
    for line in summary_of(report.results):
        console.print(line)


def _look(result: Result) -> tuple[str, str]:
    """The colour and the mark of an outcome."""
    return {
        "passed": ("green", "✓"),
        "failed": ("bold red", "✗"),
        "not run": ("red", "…"),
        "excused": ("yellow", "e"),
        "does not apply": ("dim", "–"),
    }[str(result.outcome)]
