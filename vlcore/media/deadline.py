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

    def check(self) -> None:
        """Check the time.

        Raises:
            VideoLimitError: the time is over.
        """
        if monotonic() > self._end:
            raise VideoLimitError(
                f"{self._name} takes longer to decode than "
                f"decode_timeout_s={self._timeout_s:g} of vlcore.VideoLimits"
            )


class TimedFile(io.BytesIO):
    """A file in memory that can be read until a deadline.

    Args:
        data: the content of the file.
        deadline: ends the reading.
    """

    def __init__(self, data: bytes, deadline: Deadline) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes.

        Raises:
            VideoLimitError: the time is over.
        """
        self._deadline.check()
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Change the position.

        Raises:
            VideoLimitError: the time is over.
        """
        self._deadline.check()
        return super().seek(offset, whence)
