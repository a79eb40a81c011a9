"""``vlcore view``: write the language model as a text model that other engines read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlcore.cli.options import Model, Plugin, Revision
from vlcore.cli.terminal import echo, echo_path


def view(
    model: Model,
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="Directory to write to, empty or absent. Default: a directory in the cache.",
        ),
    ] = None,
    plugin: Plugin = None,
    revision: Revision = None,
) -> None:
    """Write the language model of a checkpoint as a text-only model, and print its path."""
    from vlcore.language.view_cache import ViewCache
    from vlcore.plugins.stages import load_language_model

    language_model = load_language_model(model, plugin=plugin, revision=revision)
    is_shown = sys.stderr.isatty()
    if directory is None:
        path = ViewCache().get(language_model, progress=is_shown)
    else:
        path = language_model.write_view(directory, progress=is_shown)
    echo_path(path)
    (architecture,) = language_model.view_config["architectures"]
    limit = f"{architecture}, {language_model.context_length} tokens"
    reason = language_model.context_limit_reason
    echo(f"[{limit}{f', because {reason}' if reason else ''}]", err=True)
