"""``vlcore new``: write a new plugin package."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from vlcore.cli.terminal import echo


def new(
    name: Annotated[
        str, typer.Argument(help="Name of the package to write, preferably vl-plugin-NAME.")
    ],
    architecture: Annotated[
        str,
        typer.Option(help="Model class in config.json, such as SomeModelForConditionalGeneration."),
    ],
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Directory to write to, empty or absent. Default: one named after the package."
        ),
    ] = None,
) -> None:
    """Write a working plugin package as a starting point for a new model."""
    from vlcore.cli.new.scaffold import PluginNames, write_plugin

    written = write_plugin(PluginNames.parse(name, architecture), directory)
    folder = written[0].parent
    for path in written:
        echo(f"  {path}")
    echo("\nThe package works as it is. Install it and run its tests:\n")
    echo(f"  pip install --editable {shlex.quote(f'{folder}[test]')}")
    echo(f"  pytest {shlex.quote(str(folder))}")
