"""The server's log, into which no client can write a line of its own."""

from __future__ import annotations

import logging
import textwrap
import warnings
from types import TracebackType


class LogFormatter(logging.Formatter):
    """Keeps a message on its line, indents a traceback, and escapes control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Format the message on one line."""
        return _escape(super().formatMessage(record))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Format a traceback, indented further than any line of the log."""
        lines = super().formatException(ei).splitlines()
        return textwrap.indent("\n".join(map(_escape, lines)), "    ")


def set_up_log() -> None:
    """Log the server's events to stderr, without a line for each image of a request.

    Pillow's warnings contain numbers read from the file, and Python keeps each new text in memory.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("PIL").setLevel(logging.ERROR)
    logging.getLogger("torchao").setLevel(logging.ERROR)  # warns of missing Triton without a GPU
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _escape(text: str) -> str:
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )
