"""The server's log, in which no client can write a line of its own."""

from __future__ import annotations

import logging
import textwrap
import warnings
from types import TracebackType


class LogFormatter(logging.Formatter):
    """Keeps a message in its line, and indents a traceback; control characters are escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Write the line."""
        return _escaped(super().formatMessage(record))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Write a traceback, further in than any line begins."""
        lines = super().formatException(ei).splitlines()
        return textwrap.indent("\n".join(map(_escaped, lines)), "    ")


def set_up_log() -> None:
    """Log what the server does to stderr, and nothing of each picture that clients send or name.

    What Pillow warns of holds numbers out of the file, and each new text would be kept as well.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("PIL").setLevel(logging.ERROR)
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it misses Triton wherever no GPU is
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _escaped(text: str) -> str:
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
