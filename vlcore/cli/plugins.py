"""``vlcore plugins``: what is installed, and in which state."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vlcore.plugins import PluginInfo


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    load: Annotated[
        bool, typer.Option("--load", help="Import each plugin, to find the broken ones.")
    ] = False,
) -> None:
    """List the installed plugins, without importing them."""
    from vlcore.plugins import installed_plugins, load_plugin

    found = installed_plugins()
    if load:
        found = [load_plugin(info) for info in found]
    if as_json:
        typer.echo(json.dumps([_as_json(info) for info in found], indent=2))
    elif found:
        _print_table(found)
    else:
        typer.echo("no plugins are installed: pip install a package named vl-plugin-…")


def _as_json(info: PluginInfo) -> dict[str, object]:
    return {
        "distribution": info.distribution,
        "version": info.version,
        "architectures": list(info.architectures),
        "state": str(info.state),
        "reason": info.reason,
    }


def _print_table(found: list[PluginInfo]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("plugin", "version", "state", "architectures"):
        table.add_column(column, overflow="fold")
    for info in found:
        table.add_row(
            info.distribution, info.version, str(info.state), "\n".join(info.architectures)
        )
    console = Console()
    console.print(table)
    for info in found:
        if info.reason:
            console.print(f"\n{info.distribution}: {info.reason}", markup=False, highlight=False)
