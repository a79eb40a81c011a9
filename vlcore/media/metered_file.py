"""A file in memory that ends the decoding of an image that takes too long."""

from __future__ import annotations

import io
import time

from vlcore.errors import ImageLimitError

MAX_READS = 500_000
"""Image files are read in blocks. Only a file that is made of very many tiny parts is read more
often than this."""


class MeteredFile(io.BytesIO):
    """The bytes of an image's file, for a decoder.

    A decoder reads its file block by block, and a thread cannot be interrupted from outside. So the
    time is checked at each read.

    Args:
        data: the bytes.
        name: the name of the image in messages.
        timeout_s: the processor time that the reading thread may take, in seconds.
    """

    def __init__(self, data: bytes, name: str, timeout_s: float) -> None:
        super().__init__(data)
        self._name = name
        self._timeout_s = timeout_s
        self._started = time.thread_time()
        self._num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes.

        Raises:
            ImageLimitError: the file was read too often or for too long.
        """
        self._num_reads += 1
        if self._num_reads > MAX_READS:
            raise ImageLimitError(f"{self._name} consists of too many parts to be decoded")
        if time.thread_time() - self._started > self._timeout_s:
            raise ImageLimitError(
                f"{self._name} takes longer to decode than decode_timeout_s={self._timeout_s:g} "
                "of vlcore.ImageLimits"
            )
        return super().read(size)
