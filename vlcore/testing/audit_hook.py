"""An audit hook that records the side effects of a plugin.

What it records, of everything in the process:

- network: name resolution and connections through Python's sockets; they are blocked;
- code: reading or running modules of the checkpoint, which is blocked, and pickles with classes;
- files: files and directories that Python opens for writing, creates, moves or removes, except
  what a library does while it is imported.

It cannot record what compiled code does by itself, nor what other programs do.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

_NETWORK = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
}
_FILES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class SideEffect:
    """A side effect of a plugin."""

    kind: str
    """``"network"``, ``"code"`` or ``"files"``."""
    what: str
    where: str


class AuditHook:
    """An audit hook that records side effects while its context is entered.

    Args:
        checkpoint: the directory whose code must not run.
        module: the plugin's module, whose lines are reported as the location.
    """

    def __init__(self, checkpoint: Path, module: str) -> None:
        self.side_effects: list[SideEffect] = []
        self.during_imports: set[str] = set()
        """Files and directories that libraries created while they were imported."""
        self._checkpoint = os.path.realpath(checkpoint)
        self._own = module.partition(".")[0]
        self._is_active = False

    def __enter__(self) -> Self:
        self._is_active = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_active = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event; raise an error to block it."""
        if not self._is_active:
            return
        if event in _NETWORK:
            self._network(event, arguments)
        elif event == "exec":
            self._run(getattr(arguments[0], "co_filename", ""))
        elif event == "pickle.find_class":
            self._record("code", f"unpickled {arguments[0]}.{arguments[1]}")
        elif event == "open":
            self._open(*arguments)
        elif event in _FILES:
            self._touch(event.removeprefix("os."), *arguments[:1])

    def _network(self, event: str, arguments: tuple[Any, ...]) -> None:
        where = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if event == "socket.connect" and isinstance(where, str | bytes):
            return  # a Unix socket
        self._record("network", f"{event} {where!r:.200}")
        raise ConnectionRefusedError("the conformance kit blocks the network")

    def _run(self, filename: object) -> None:
        if isinstance(filename, str) and self._is_remote(filename):
            self._record("code", f"ran {filename}")
            raise PermissionError("the conformance kit blocks remote code")

    def _is_remote(self, filename: str) -> bool:
        if "transformers_modules" in Path(filename).parts:
            return True
        if not filename.endswith(".py"):
            return False
        return os.path.realpath(filename).startswith(self._checkpoint + os.sep)

    def _open(self, path: object, mode: object, flags: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file descriptor
        name = os.fsdecode(path)
        if self._is_remote(name):
            self._record("code", f"read {name}")
            raise PermissionError("the conformance kit blocks remote code")
        writes = isinstance(flags, int) and flags & _WRITES
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            self._touch("open", name)

    def _touch(self, event: str, path: object) -> None:
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else repr(path)
        if "__pycache__" in name or name.startswith("/dev/"):
            return
        name = os.path.abspath(name)
        if _is_import_of_library(self._own):
            self.during_imports.add(name)
        else:
            self._record("files", f"{'wrote' if event == 'open' else event} {name}")

    def _record(self, kind: str, what: str) -> None:
        side_effect = SideEffect(kind, what, _caller(self._own))
        if side_effect not in self.side_effects:
            self.side_effects.append(side_effect)


def _stack() -> Iterator[tuple[str, FrameType]]:
    """The frames outside this module, innermost first, each with its file name."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame.f_code.co_filename, frame
        frame = frame.f_back  # type: ignore[assignment]


def _is_own(filename: str, own: str) -> bool:
    return own in (*Path(filename).parts, Path(filename).stem)


def _is_import_of_library(own: str) -> bool:
    """Whether an import is between the plugin's innermost frame and the event."""
    for filename, _ in _stack():
        if _is_own(filename, own):
            return False
        if filename.startswith("<frozen importlib"):
            return True
    return False


def _caller(own: str) -> str:
    """The plugin's innermost line, or else the innermost line outside the standard library."""
    library = sysconfig.get_path("stdlib")
    outside = "an unknown location"
    for filename, frame in _stack():
        location = f"{filename}:{frame.f_lineno}, in {frame.f_code.co_name}"
        if _is_own(filename, own):
            return location
        is_library = filename.startswith((library, "<")) and "site-packages" not in filename
        if outside == "an unknown location" and not is_library:
            outside = location
    return outside
