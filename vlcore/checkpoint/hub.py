"""Downloads of the files of a Hugging Face Hub repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlcore.errors import CheckpointNotFoundError


@dataclass(frozen=True)
class HubRepository:
    """A repository of the Hugging Face Hub, at one revision."""

    repo_id: str
    """Such as ``"organisation/name"``."""
    revision: str | None = None
    """A branch, tag or commit; ``None`` for the default branch."""

    def download(self, patterns: Sequence[str]) -> Path:
        """Download the files that match any of the patterns, unless they are cached.

        Returns:
            The directory of the repository's files in the local cache.

        Raises:
            CheckpointNotFoundError: the repository or the network cannot be reached.
        """
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(
                    self.repo_id, revision=self.revision, allow_patterns=list(patterns)
                )
            )
        except Exception as error:  # the Hub client raises many unrelated types
            raise CheckpointNotFoundError(
                f"there is no directory {self.repo_id!r}, and {', '.join(patterns)} of the Hub "
                f"repository {self.repo_id!r} (revision {self.revision or 'main'}) could not be "
                f"downloaded: {type(error).__name__}: {error}. Check the name and the network, or "
                "download the repository and pass its directory"
            ) from error
