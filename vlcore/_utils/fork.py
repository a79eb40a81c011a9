"""``ForkGuard``: detects that a process was forked."""

from __future__ import annotations

import os

from vlcore.errors import EngineClosedError


class ForkGuard:
    """Remembers the process in which an object was created.

    A forked child has copies of the parent's objects but none of its threads, so calls that wait
    for a thread would never return.

    Args:
        what: the object, for the error message, such as ``"pipeline"``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()

    @property
    def is_child(self) -> bool:
        """Whether this process is a forked child of the one that created the object."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Check that the process was not forked.

        Raises:
            EngineClosedError: this process is a forked child.
        """
        if self.is_child:
            raise EngineClosedError(
                f"the {self._what} was created in process {self._pid}, and this process is a fork "
                f"of it without its threads: create the {self._what} after forking, or start "
                "processes with multiprocessing's method 'spawn'"
            )
