"""Checks of what a plugin does beside its work: nothing."""

from __future__ import annotations

from vlcore.testing.check import check
from vlcore.testing.report import NotRunError, fail
from vlcore.testing.subject import Subject


def _expect_nothing(subject: Subject, kind: str, expected: str, advice: str) -> None:
    watched = subject.watched
    if deeds := watched.of(kind):
        more = f", and {len(deeds) - 1} more" if len(deeds) > 1 else ""
        fail(expected=expected, came=f"{deeds[0].what}{more}", where=deeds[0].where, advice=advice)
    if watched.error:
        raise NotRunError(f"the plugin could not be used to the end: {watched.error}")


@check("no-network", "needs no network once the checkpoint is there")
def no_network(subject: Subject) -> None:
    """Look for names looked up and connections."""
    _expect_nothing(
        subject,
        "network",
        "no name looked up and no connection made",
        "read every file through the Checkpoint; keep a tower inside it, or beside it in a folder",
    )


@check("no-remote-code", "runs no code of the checkpoint, and unpickles nothing but tensors")
def no_remote_code(subject: Subject) -> None:
    """Look for modules of the checkpoint, which offers some."""
    _expect_nothing(
        subject,
        "code",
        "no module of the checkpoint read or run, and no class unpickled",
        "leave trust_remote_code out; build the classes in the plugin; let checkpoint.tensors "
        "read .bin files",
    )


@check("no-files-written", "writes no files, neither into the checkpoint nor elsewhere")
def no_files_written(subject: Subject) -> None:
    """Look for files that were made or changed."""
    _expect_nothing(
        subject,
        "files",
        "no file or folder made, changed or removed",
        "keep it in memory: a checkpoint is read-only, and several processes may share it",
    )
