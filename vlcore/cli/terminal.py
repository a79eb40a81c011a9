"""Text input and output of the commands, whatever the encoding of the terminal."""

from __future__ import annotations

import codecs
import io
import os
import sys
from contextlib import suppress
from pathlib import Path

_ERRORS = "vlcore.replace"
_IN_ASCII = {"✓": "+", "✗": "x", "…": "...", "–": "-", "␣": "_"}
"""ASCII versions of the symbols in the output of the commands."""


def set_up_streams() -> None:
    """Keep characters that the standard streams cannot represent from raising errors.

    Characters that the encoding of stdout lacks become ``?`` or an ASCII symbol, and on stderr a
    backslash escape. Invalid bytes on stdin become lone surrogates, which :func:`is_valid_text`
    finds, and which file names may contain.
    Error handlers that the user chose by ``PYTHONIOENCODING``, such as ``ascii:ignore``, are kept.
    """
    codecs.register_error(_ERRORS, _replace)
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, _ERRORS),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            with suppress(io.UnsupportedOperation):  # it was read from already
                stream.reconfigure(errors=errors)


def echo(text: str = "", *, err: bool = False, end: str = "\n") -> None:
    """Print text to stdout or stderr in its own encoding, and flush it.

    ``typer.echo`` writes UTF-8 where the encoding is ASCII.
    """
    print(text, end=end, file=sys.stderr if err else sys.stdout, flush=True)


def echo_path(path: Path) -> None:
    """Print a path for other programs: on POSIX, its bytes, whatever the encoding of stdout."""
    buffer = getattr(sys.stdout, "buffer", None)
    if os.name != "posix" or buffer is None:
        echo(str(path))
        return
    sys.stdout.flush()
    buffer.write(os.fsencode(path) + b"\n")
    buffer.flush()


def is_valid_text(text: str) -> bool:
    """Return whether a text has no lone surrogates, which stand for invalid bytes of input."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that cannot be encoded, as an error handler of :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(character, "?") for character in characters), error.end
