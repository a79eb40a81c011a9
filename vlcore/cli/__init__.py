"""The ``vlcore`` command, one module or package for each subcommand.

Commands import what they need when they run, so that ``vlcore --help`` and ``vlcore plugins``
stay free of torch and of every plugin.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from vlcore._version import __version__
from vlcore.cli.cache import cache
from vlcore.cli.chat import chat
from vlcore.cli.check import check
from vlcore.cli.cluster import cluster
from vlcore.cli.doctor import doctor
from vlcore.cli.encode import encode
from vlcore.cli.explain import explain
from vlcore.cli.new import new
from vlcore.cli.plugins import plugins
from vlcore.cli.serve import serve
from vlcore.cli.terminal import echo, set_up_streams
from vlcore.cli.view import view
from vlcore.errors import VlcoreError

app = typer.Typer(
    name="vlcore",
    help="Run vision-language models, each installed as a plugin, on any engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(cache)
app.command()(chat)
app.command()(check)
app.command()(cluster)
app.command()(doctor)
app.command()(encode)
app.command()(explain)
app.command()(new)
app.command()(plugins)
app.command()(serve)
app.command()(view)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        echo(f"vlcore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    del version
    set_up_streams()


def main() -> None:
    """Run the command line. Errors of vlcore are printed without a traceback."""
    set_up_streams()
    try:
        code = app(standalone_mode=False)
    except VlcoreError as error:
        echo(f"error: {error}", err=True)
        sys.exit(1)
    except typer.Abort:
        echo("Aborted!", err=True)
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "show"):
            raise
        # A usage error: by itself, it writes UTF-8 to a terminal whose encoding is ASCII.
        message = io.StringIO()
        error.show(file=message)
        echo(message.getvalue(), err=True, end="")
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)
