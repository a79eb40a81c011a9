"""The directory or the Hub repository that the name of a model refers to."""

from __future__ import annotations

from pathlib import Path

from vlcore.checkpoint.hub import HubRepository
from vlcore.errors import CheckpointError, CheckpointNotFoundError


def find_checkpoint(model: str | Path, revision: str | None = None) -> Path | HubRepository:
    """Return the directory or the Hub repository of a model, without network access.

    Args:
        model: a directory or a Hub repo id; a directory takes precedence.
        revision: a branch, tag or commit of the Hub repository.

    Raises:
        CheckpointError: the path of the directory is not UTF-8.
        CheckpointNotFoundError: ``model`` is neither a directory nor a Hub repo id.
    """
    if not isinstance(model, str | Path) or not str(model):
        raise CheckpointNotFoundError(
            f"a model directory or Hub repo id is expected; {model!r} is neither"
        )
    repo_id = str(model)
    try:
        directory = Path(model).expanduser()
        if directory.is_dir():
            _check_encoding(directory)
            return directory
        is_file = directory.exists()
    except (OSError, ValueError, RuntimeError) as error:  # not a valid path
        raise CheckpointNotFoundError(f"{repo_id[:80]!r} is not a directory: {error}") from error
    if is_file:
        raise CheckpointNotFoundError(
            f"a model directory or Hub repo id is expected; {repo_id!r} is a file"
        )
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")):
        raise CheckpointNotFoundError(
            f"there is no directory {repo_id!r}, and it is not a Hub repo id "
            "(organisation/name) either"
        )
    return HubRepository(repo_id, revision)


def _check_encoding(directory: Path) -> None:
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"the path {str(directory)!r} is not valid UTF-8, and libraries that read tokenizers "
            "and weights need one that is: rename the directory, or make a symbolic link to it"
        ) from None
