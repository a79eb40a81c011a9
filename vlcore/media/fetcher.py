"""``ImageFetcher``: downloads and reads the files of images for many requests at a time.

Downloads run on the event loop, so that a slow server occupies no thread; a cancelled one closes
its connection. Files are read in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from vlcore._utils.executor import DaemonExecutor
from vlcore._utils.fair_queue import FairSemaphore, current_client
from vlcore.media.download import download
from vlcore.media.policy import ImageAccess, ImageLimits
from vlcore.media.source import ImageSource, describe, is_web_url, read_image

_T = TypeVar("_T")

_MAX_READS = 32
"""Maximum number of files that are read at the same time."""

_MAX_DOWNLOADS = 128
"""Maximum number of downloads, including complete ones whose bytes are still needed."""

_MAX_DOWNLOADS_OF_CLIENT = 32
"""Maximum number of these for one client."""


class ImageFetcher:
    """Downloads and reads images within a policy.

    Args:
        limits: limits for each image.
        access: sources that images may be read from.
    """

    def __init__(self, limits: ImageLimits, access: ImageAccess) -> None:
        self._limits = limits
        self._access = access
        self._downloads = FairSemaphore(_MAX_DOWNLOADS, _MAX_DOWNLOADS_OF_CLIENT)
        self._readers = DaemonExecutor(_MAX_READS, "vlcore-fetch")

    @asynccontextmanager
    async def downloaded(self, source: ImageSource, owner: Hashable) -> AsyncIterator[ImageSource]:
        """Download an image if its source is a URL; other sources are not touched.

        The number of downloads, of all clients and of each of them, is limited within this context.

        Args:
            source: The source of the image.
            owner: The request that the image belongs to, if its client is not known.

        Yields:
            The downloaded bytes, or the source itself.

        Raises:
            ImageError: the image cannot be downloaded, or its URL is not allowed.
        """
        if not is_web_url(source):
            yield source
            return
        async with self._downloads.hold(current_client.get(owner)):
            yield await download(str(source), describe(source), self._limits, self._access)

    async def read(self, source: str | Path | bytes) -> bytes:
        """Read the bytes of a file, of a ``data:`` URL, or of an image that was downloaded.

        Raises:
            ImageError: the file is missing, not allowed, or cannot be read.
            ImageLimitError: the file exceeds a limit.
        """
        return await self.run(lambda: read_image(source, self._limits, self._access))

    async def run(self, function: Callable[[], _T]) -> _T:
        """Run a function in one of the threads that read files."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)

    async def stop(self, timeout_s: float) -> bool:
        """Stop the threads; whether they ended within ``timeout_s`` seconds."""
        return await self._readers.stop(timeout_s)
