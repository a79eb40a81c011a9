"""``vlcore cache``: the text views that are kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vlcore.language.view_cache import CachedView


def cache(
    name: Annotated[
        str | None, typer.Argument(help="One view by its name, or those of a model.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the text views that are kept, or remove them.

    A checkpoint's own files, which views link to, are never removed.
    """
    from vlcore.language.view_cache import ViewCache

    kept = ViewCache()
    views = kept.clear(name) if clear else kept.views(name)
    if as_json:
        listed = [asdict(view) | {"path": str(view.path)} for view in views]
        typer.echo(json.dumps(listed, indent=2))
    elif clear:
        num_bytes = sum(view.num_bytes for view in views)
        typer.echo(f"removed {len(views)} view(s), {_size(num_bytes)}, from {kept.root}")
    elif views:
        typer.echo(f"{kept.root} keeps\n")
        _print_table(views)
    else:
        typer.echo(f"no views are kept in {kept.root}")


def _print_table(views: list[CachedView]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("view", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("made", no_wrap=True)
    table.add_column("of", overflow="fold")
    for view in views:
        made = view.made[:16].replace("T", " ") or "unfinished"
        table.add_row(Text(view.name), _size(view.num_bytes), made, Text(view.model or "?"))
    Console().print(table)


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
