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
        str | None,
        typer.Option(
            help="Model class in config.json, such as SomeModelForConditionalGeneration. "
            "Not needed with --from-transformers."
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            help="Directory to write to, empty or absent. Default: one named after the package."
        ),
    ] = None,
    from_transformers: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG_CLASS",
            help="Write a plugin for a family that transformers ships, named by its configuration "
            "class, such as SomeConfig.",
        ),
    ] = None,
    jinja: Annotated[
        bool,
        typer.Option("--jinja", help="Use the checkpoint's own Jinja chat template."),
    ] = False,
) -> None:
    """Write a working plugin package as a starting point for a new model."""
    from vlcore.cli.new.scaffold import PluginNames, write_plugin

    family = None
    if from_transformers is not None:
        from vlcore.cli.new.family import inspect_family

        PluginNames.parse(name, architecture or "Model")  # before anything takes time
        family = inspect_family(from_transformers)
        if architecture not in (None, family.architecture):
            raise typer.BadParameter(
                f"--architecture is {family.architecture} for {from_transformers}: leave it out"
            )
        architecture = family.architecture
    if architecture is None:
        raise typer.BadParameter("--architecture or --from-transformers is needed")
    names = PluginNames.parse(name, architecture)
    written = write_plugin(names, directory, uses_jinja=jinja, family=family)
    folder = written[0].parent
    for path in written:
        echo(f"  {path}")
    if family is None:
        echo("\nThe package works as it is. Install it and run its tests:\n")
    else:
        echo(
            "\nIts tests compare it with transformers. Make the sizes in tests/tiny_checkpoint.py "
            "fit each other\n(docs/howto/from-transformers.md), install it and run them:\n"
        )
    echo(f"  pip install --editable {shlex.quote(f'{folder}[test]')}")
    echo(f"  pytest {shlex.quote(str(folder))}")
