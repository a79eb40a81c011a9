"""``vlcore check``: run the conformance kit on a plugin."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlcore.cli.options import Device, Plugin
from vlcore.cli.terminal import echo

if TYPE_CHECKING:
    from vlcore.testing import Report, Result


def check(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="PACKAGE_OR_MODEL",
            help="Name of an installed plugin, or a checkpoint directory or Hub repo id.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint to check the plugin with. Default: check the package only."),
    ] = None,
    plugin: Plugin = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Name of a check to run. May be repeated. Default: all checks."
        ),
    ] = None,
    excuse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=REASON",
            help="Name of a check that is expected to fail, and the reason. May be repeated.",
        ),
    ] = None,
    serves: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Known model that the plugin serves. May be repeated."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Recorded values of the reference implementation to compare with."
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Data type of the weights: float32, float16 or bfloat16.")
    ] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    list_checks: Annotated[bool, typer.Option("--list", help="List the checks and exit.")] = False,
) -> None:
    """Run the conformance tests on a plugin, preferably with a tiny checkpoint.

    The exit code is 1 if a check fails.
    """
    from vlcore.testing import CHECKS, check_plugin

    if list_checks:
        _print_list(CHECKS, as_json=as_json)
        return
    if target is None:
        raise typer.BadParameter("expected an installed plugin or a model (or --list)")
    package, model = _read_target(target, model, plugin)
    with _progress(len(CHECKS), shown=sys.stderr.isatty()) as advance:
        report = check_plugin(
            model,
            plugin=package,
            excused=_read_expected_failures(excuse or ()),
            only=only or (),
            reference=reference,
            serves=serves or (),
            device=device,
            dtype=dtype,
            on_result=lambda _: advance(),
        )
    if as_json:
        echo(json.dumps(report.to_json(), indent=2))
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _read_target(
    target: str, model: str | None, plugin: str | None
) -> tuple[str | None, str | None]:
    """Return the plugin and the model that the argument and the options name.

    Raises:
        OptionError: the argument is neither a plugin nor a model, or two of a kind are named.
    """
    from packaging.utils import canonicalize_name

    from vlcore.errors import OptionError
    from vlcore.plugins.registry import installed_plugins

    installed = [info.distribution for info in installed_plugins()]
    if canonicalize_name(target) in map(canonicalize_name, installed):
        if plugin is not None:
            raise OptionError(f"{target} is a plugin: remove --plugin {plugin}")
        return target, model
    if model is not None or not ("/" in target or Path(target).is_dir()):
        raise OptionError(
            f"{target!r} is not an installed plugin ({', '.join(installed) or 'none is installed'})"
            + ("" if model is not None else ", nor a checkpoint directory or a Hub repo id")
        )
    return plugin, target


def _read_expected_failures(values: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=REASON``. The kit reports a missing reason."""
    return {name: reason for name, _, reason in (value.partition("=") for value in values)}


def _progress(total: int, *, shown: bool) -> Any:
    from vlcore._utils.progress import progress_bar

    return progress_bar(total, description="checking", unit="check", shown=shown)


def _print_list(checks: Sequence[Any], *, as_json: bool) -> None:
    if as_json:
        values = [
            {"name": check.name, "about": check.about, "needs_model": check.needs_model}
            for check in checks
        ]
        echo(json.dumps(values, indent=2))
        return
    width = max(len(check.name) for check in checks)
    for check in checks:
        echo(f"{check.name:{width}}  {check.about}")


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
        style, symbol = _style(result)
        table.add_row(Text(symbol, style), result.name, Text(result.about, "dim"))
    console.print(table, soft_wrap=False)
    for result in report.results:
        if result.failure is None and result.outcome != "not run":
            continue
        style, _ = _style(result)
        console.print(Text(f"\n{result.name} {result.outcome}", style))
        console.print(f"  {result.message}".replace("\n", "\n  "))
    console.print()
    for line in summary_of(report.results):
        console.print(line)


def _style(result: Result) -> tuple[str, str]:
    """The colour and the symbol of an outcome."""
    return {
        "passed": ("green", "✓"),
        "failed": ("bold red", "✗"),
        "not run": ("red", "…"),
        "excused": ("yellow", "e"),
        "does not apply": ("dim", "–"),
    }[str(result.outcome)]
