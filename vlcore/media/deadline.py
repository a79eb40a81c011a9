"""The time that decoding a video may take."""

from __future__ import annotations

import io
from time import monotonic

from vlcore.errors import VideoLimitError


class Deadline:
    """The end of the time for one video, which starts when this is created.

    A decoder cannot be interrupted, so the time is checked between two of its steps.

    Args:
        name: the name of the video in messages.
        timeout_s: the time, in seconds.
    """

    def __init__(self, name: str, timeout_s: float) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._end = monotonic() + timeout_s

    def is_over(self) -> bool:
        """Return whether the time is over."""
        return monotonic() > self._end

    def check(self) -> None:
        """Check the time.

        Raises:
            VideoLimitError: the time is over.
        """
        if self.is_over():
            raise VideoLimitError(
                f"{self._name} takes longer to decode than "
                f"decode_timeout_s={self._timeout_s:g} of vlcore.VideoLimits"
            )


class TimedFile(io.BytesIO):
    """A file in memory that ends when the time is over.

    FFmpeg writes errors of files to the standard error stream, so none is raised: the reader checks
    the time afterwards.

    Args:
        data: the content of the file.
        deadline: the end of the time.
    """

    def __init__(self, data: bytes, deadline: Deadline) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes; none if the time is over."""
        return b"" if self._deadline.is_over() else super().read(size)
