"""``vlcore new``: write a new plugin package."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def new(
    name: Annotated[str, typer.Argument(help="Distribution name, preferably vl-plugin-…")],
    architecture: Annotated[
        str,
        typer.Option(help="Model class in config.json, such as SomeModelForConditionalGeneration."),
    ],
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Directory to write to. Default: a new one named after the distribution."
        ),
    ] = None,
) -> None:
    """Write a working plugin package as a starting point for a new model."""
    from vlcore.cli.new.scaffold import PluginNames, write_plugin

    written = write_plugin(PluginNames.parse(name, architecture), directory)
    folder = written[0].parent
    for path in written:
        typer.echo(f"  {path}")
    typer.echo("\nThe package works as it is. Install it and run its tests:\n")
    typer.echo(f"  pip install --editable {shlex.quote(f'{folder}[test]')}")
    typer.echo(f"  pytest {shlex.quote(str(folder))}")
