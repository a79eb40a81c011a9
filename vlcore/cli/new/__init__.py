"""``vlcore new``: a plugin package to start from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer


def new(
    name: Annotated[str, typer.Argument(help="Of the distribution, best vl-plugin-…")],
    architecture: Annotated[
        str,
        typer.Option(
            help="The model class in config.json, such as SomeModelForConditionalGeneration."
        ),
    ],
    directory: Annotated[
        Path | None, typer.Option(help="Where; by default, a new folder of that name.")
    ] = None,
) -> None:
    """Write a plugin package that works, to be filled with a model of your own."""
    from vlcore.cli.new.scaffold import PluginNames, write_plugin

    written = write_plugin(PluginNames.of(name, architecture), directory)
    folder = written[0].parent
    for path in written:
        typer.echo(f"  {path}")
    typer.echo("\nIt works as it is. Install it, and run its tests:\n")
    typer.echo(f"  pip install --editable {shlex.quote(f'{folder}[test]')}")
    typer.echo(f"  pytest {shlex.quote(str(folder))}")
