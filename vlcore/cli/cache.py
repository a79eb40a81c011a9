"""``vlcore cache``: list and remove cached text views."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vlcore.cli.terminal import echo

if TYPE_CHECKING:
    from vlcore.language.view_cache import CachedView


def cache(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of a view, or of a model, to select its views. Default: all views."
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove the selected views.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List or remove cached text views, which are text-only models written for TurboMind.

    The files of the checkpoint itself, which views link to, are never removed.
    """
    from vlcore._utils.sizes import readable_size
    from vlcore.language.view_cache import ViewCache

    view_cache = ViewCache()
    views = view_cache.clear(name) if clear else view_cache.views(name)
    if as_json:
        listed = [asdict(view) | {"path": str(view.path)} for view in views]
        echo(json.dumps(listed, indent=2))
    elif clear:
        num_bytes = sum(view.num_bytes for view in views)
        echo(f"removed {len(views)} view(s), {readable_size(num_bytes)}, from {view_cache.root}")
    elif views:
        echo(f"Text views in {view_cache.root}\n")
        _print_table(views)
    else:
        echo(f"no text views in {view_cache.root}")


def _print_table(views: list[CachedView]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vlcore._utils.sizes import readable_size

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("view", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("created", no_wrap=True)
    table.add_column("model", overflow="fold")
    for view in views:
        created = view.made[:16].replace("T", " ") or "incomplete"
        table.add_row(
            Text(view.name), readable_size(view.num_bytes), created, Text(view.model or "?")
        )
    Console().print(table)
