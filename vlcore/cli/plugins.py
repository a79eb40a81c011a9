"""``vlcore plugins``: the installed plugins and their states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vlcore.cli.terminal import echo

if TYPE_CHECKING:
    from rich.text import Text

    from vlcore.plugins.metadata import PluginInfo

_STYLES = {"ready": "green", "blocked": "dim"}
_BAD = "bold red"


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    load: Annotated[
        bool,
        typer.Option(
            "--load",
            help="Import each plugin as well, to find those that fail and those that are slow.",
        ),
    ] = False,
) -> None:
    """List the installed plugins."""
    from vlcore.plugins.metadata import installed_plugins, shared_architectures

    found = installed_plugins()
    if load:
        from vlcore.plugins.registry import load_plugin

        found = [load_plugin(info) for info in found]
    shared = shared_architectures(found)
    if as_json:
        echo(json.dumps([_as_json(info, shared) for info in found], indent=2))
    elif found:
        _print_table(found, shared, shows_times=load)
    else:
        echo("no plugins are installed: pip install a package whose name begins with vl-plugin-")


def _as_json(info: PluginInfo, shared: Mapping[str, Sequence[str]]) -> dict[str, object]:
    return {
        "distribution": info.distribution,
        "version": info.version,
        "architectures": list(info.architectures),
        "generic_architectures": sorted(info.generic_architectures),
        "shared_with": {
            name: [other for other in shared[name] if other != info.distribution]
            for name in info.architectures
            if name in shared
        },
        "state": str(info.state),
        "reason": info.reason,
        "requires_vlcore": info.requires,
        "warnings": list(info.warnings),
        "import_ms": None if info.import_ms is None else round(info.import_ms, 1),
    }


def _print_table(
    found: Sequence[PluginInfo], shared: Mapping[str, Sequence[str]], *, shows_times: bool
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("plugin", "version", "state"):
        table.add_column(column, overflow="fold")
    if shows_times:
        table.add_column("import", justify="right", no_wrap=True)
    table.add_column("architectures", overflow="fold")
    for info in found:
        time = "" if info.import_ms is None else f"{info.import_ms:.0f} ms"
        table.add_row(
            Text(info.distribution),
            Text(info.version),
            Text(str(info.state), _STYLES.get(info.state, _BAD)),
            *([time] if shows_times else []),
            _architectures(info, shared),
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    for info in found:
        for line in (info.reason, *info.warnings):
            if line:
                console.print(f"\n{info.distribution}: {line}")


def _architectures(info: PluginInfo, shared: Mapping[str, Sequence[str]]) -> Text:
    """The architectures, each with the other plugins that register the same name.

    Those of a generic plugin are only counted.
    """
    from rich.text import Text

    lines = [
        Text.assemble(name, (_others(info, shared.get(name, ())), "dim"))
        for name in info.own_architectures
    ]
    if info.generic_architectures:
        lines.append(
            Text.assemble(
                f"{len(info.generic_architectures)} architectures, ",
                ("where no other plugin serves the checkpoint (--json lists them)", "dim"),
            )
        )
    return Text("\n").join(lines)


def _others(info: PluginInfo, owners: Sequence[str]) -> str:
    others = ", ".join(owner for owner in owners if owner != info.distribution)
    return f"  also {others}" if others else ""
