"""Checks that a plugin has no side effects."""

from __future__ import annotations

from vlcore.testing.check import check
from vlcore.testing.report import NotRunError, fail
from vlcore.testing.subject import Subject


def _expect_nothing(subject: Subject, kind: str, expected: str, advice: str) -> None:
    isolated_run = subject.isolated_run
    if side_effects := isolated_run.of(kind):
        more = f", and {len(side_effects) - 1} more" if len(side_effects) > 1 else ""
        fail(
            expected=expected,
            actual=f"{side_effects[0].what}{more}",
            where=side_effects[0].where,
            advice=advice,
        )
    if isolated_run.error:
        raise NotRunError(f"the plugin could not be used completely: {isolated_run.error}")


@check("no-network", "needs no network once the checkpoint is local")
def no_network(subject: Subject) -> None:
    """Check for name resolution and connections."""
    _expect_nothing(
        subject,
        "network",
        "no name resolved and no connection opened",
        "read every file through the Checkpoint; store a vision encoder inside it or next to it",
    )


@check("no-remote-code", "runs no code of the checkpoint, and unpickles nothing but tensors")
def no_remote_code(subject: Subject) -> None:
    """Check for modules of the checkpoint, which contains some."""
    _expect_nothing(
        subject,
        "code",
        "no module of the checkpoint read or run, and no class unpickled",
        "do not pass trust_remote_code; build the classes in the plugin; let checkpoint.tensors "
        "read .bin files",
    )


@check("no-files-written", "writes no files, neither into the checkpoint nor elsewhere")
def no_files_written(subject: Subject) -> None:
    """Check for files that were created or modified."""
    _expect_nothing(
        subject,
        "files",
        "no file or directory created, modified or removed",
        "keep data in memory: a checkpoint is read-only, and several processes may share it",
    )
