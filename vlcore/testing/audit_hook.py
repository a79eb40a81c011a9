"""An audit hook that tells what a plugin does beside its work.

What is seen, of all that happens in the process:

- network: names looked up and connections made through Python's sockets; they are refused;
- code: modules of the checkpoint read or run, which is refused, and pickles that name classes;
- files: files and folders that Python opens for writing, makes, moves or removes; what a library
  does while it is imported is passed over.

What is not seen: what compiled code does by itself, and other programs that are started.
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
    """Something that a plugin did."""

    kind: str
    """``"network"``, ``"code"`` or ``"files"``."""
    what: str
    where: str


class AuditHook:
    """An audit hook that keeps what it sees while it is entered.

    Args:
        checkpoint: where remote code may lie.
        module: the plugin's, whose lines are named as the place.
    """

    def __init__(self, checkpoint: Path, module: str) -> None:
        self.deeds: list[SideEffect] = []
        self.passed_over: set[str] = set()
        """Files and folders that libraries made while they were imported."""
        self._checkpoint = os.path.realpath(checkpoint)
        self._own = module.partition(".")[0]
        self._is_on = False

    def __enter__(self) -> Self:
        self._is_on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take an audit event; what must not happen is refused."""
        if not self._is_on:
            return
        if event in _NETWORK:
            self._network(event, arguments)
        elif event == "exec":
            self._run(getattr(arguments[0], "co_filename", ""))
        elif event == "pickle.find_class":
            self._note("code", f"unpickled {arguments[0]}.{arguments[1]}")
        elif event == "open":
            self._open(*arguments)
        elif event in _FILES:
            self._touch(event.removeprefix("os."), *arguments[:1])

    def _network(self, event: str, arguments: tuple[Any, ...]) -> None:
        where = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if event == "socket.connect" and isinstance(where, str | bytes):
            return  # a Unix socket
        self._note("network", f"{event} {where!r:.200}")
        raise ConnectionRefusedError("the conformance kit refuses the network")

    def _run(self, filename: object) -> None:
        if isinstance(filename, str) and self._is_remote(filename):
            self._note("code", f"ran {filename}")
            raise PermissionError("the conformance kit refuses remote code")

    def _is_remote(self, filename: str) -> bool:
        if "transformers_modules" in Path(filename).parts:
            return True
        if not filename.endswith(".py"):
            return False
        return os.path.realpath(filename).startswith(self._checkpoint + os.sep)

    def _open(self, path: object, mode: object, flags: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open already
        name = os.fsdecode(path)
        if self._is_remote(name):
            self._note("code", f"read {name}")
            raise PermissionError("the conformance kit refuses remote code")
        writes = isinstance(flags, int) and flags & _WRITES
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            self._touch("open", name)

    def _touch(self, event: str, path: object) -> None:
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else repr(path)
        if "__pycache__" in name or name.startswith("/dev/"):
            return
        name = os.path.abspath(name)
        if _is_import_of_library(self._own):
            self.passed_over.add(name)
        else:
            self._note("files", f"{'wrote' if event == 'open' else event} {name}")

    def _note(self, kind: str, what: str) -> None:
        deed = SideEffect(kind, what, _caller(self._own))
        if deed not in self.deeds:
            self.deeds.append(deed)


def _stack() -> Iterator[tuple[str, FrameType]]:
    """The frames outside this module, the innermost first, each with the name of its file."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame.f_code.co_filename, frame
        frame = frame.f_back  # type: ignore[assignment]


def _is_own(filename: str, own: str) -> bool:
    return own in (*Path(filename).parts, Path(filename).stem)


def _is_import_of_library(own: str) -> bool:
    """Whether an import stands between the plugin's innermost line and what happens."""
    for filename, _ in _stack():
        if _is_own(filename, own):
            return False
        if filename.startswith("<frozen importlib"):
            return True
    return False


def _caller(own: str) -> str:
    """The plugin's innermost line, or else the innermost one outside Python's library."""
    library = sysconfig.get_path("stdlib")
    outside = "an unknown place"
    for filename, frame in _stack():
        place = f"{filename}:{frame.f_lineno}, in {frame.f_code.co_name}"
        if _is_own(filename, own):
            return place
        is_library = filename.startswith((library, "<")) and "site-packages" not in filename
        if outside == "an unknown place" and not is_library:
            outside = place
    return outside
