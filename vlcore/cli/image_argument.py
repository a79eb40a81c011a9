"""The argument of ``/image``: images as people type them or drag them into a terminal."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

_URL_SCHEMES = ("http://", "https://", "data:", "file:")
_ESCAPE = "" if os.name == "nt" else "\\"


def read_image_argument(argument: str) -> list[str]:
    r"""Return the images that an argument names.

    An existing file and a URL are taken as they are. Otherwise, quotes and backslashes are read as
    in a POSIX shell, and several names are several images if each is a file or a URL. On Windows,
    where backslashes separate directories, quotes alone are read.

    Args:
        argument: such as ``photo of me.png``, ``'photo of me.png'``, ``photo\ of\ me.png`` or
            ``file:///home/me/photo%20of%20me.png``.
    """
    argument = argument.strip()
    if _is_image(argument):
        return [argument]
    words = _split(argument)
    return words if len(words) == 1 or all(map(_is_image, words)) else [argument]


def _split(argument: str) -> list[str]:
    lexer = shlex.shlex(argument, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    lexer.escape = _ESCAPE
    try:
        return list(lexer) or [argument]
    except ValueError:  # an unmatched quote, such as an apostrophe
        return [argument]


def _is_image(name: str) -> bool:
    if name.lower().startswith(_URL_SCHEMES):
        return not any(character.isspace() for character in name)
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # it is too long, not a path or of no user
        return False
