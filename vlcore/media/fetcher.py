"""``ImageFetcher``: downloads and reads the files of images and videos for many requests at a time.

Downloads run on the event loop, so that a slow server occupies no thread; a cancelled one closes
its connection. Files are read in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from vlcore._utils.executor import DaemonExecutor
from vlcore._utils.fair_queue import current_client
from vlcore.media.download import download
from vlcore.media.download_slots import DownloadSlots
from vlcore.media.kind import FileLimits
from vlcore.media.policy import ImageAccess, ImageLimits
from vlcore.media.source import ImageSource, describe, is_web_url, read_file, read_image
from vlcore.media.undecoded_video import UndecodedVideo, VideoInput
from vlcore.media.video import VideoLimits
from vlcore.media.video_loader import DEFAULT_VIDEO_LIMITS

_S = TypeVar("_S", bound=ImageSource | VideoInput)
_T = TypeVar("_T")

_MAX_READS = 32
"""Maximum number of files that are read at the same time."""


class ImageFetcher:
    """Downloads and reads images and videos within a policy.

    Args:
        limits: limits for each image.
        access: sources that images and videos may be read from.
        video_limits: limits for each video.
    """

    def __init__(
        self,
        limits: ImageLimits,
        access: ImageAccess,
        video_limits: VideoLimits = DEFAULT_VIDEO_LIMITS,
    ) -> None:
        self._limits = limits
        self._video_limits = video_limits
        self._access = access
        self._downloads = DownloadSlots()
        self._readers = DaemonExecutor(_MAX_READS, "vlcore-fetch")

    @asynccontextmanager
    async def downloaded(self, source: _S, owner: Hashable) -> AsyncIterator[_S | bytes]:
        """Download an image or video if its source is a URL; other sources are not touched.

        The number of downloads is limited within this context, and every request has one.

        Args:
            source: The source of the image or video.
            owner: The request that the image belongs to.

        Yields:
            The downloaded bytes, or the source itself.

        Raises:
            ImageError, VideoError: it cannot be downloaded, or its URL is not allowed.
        """
        is_file = isinstance(source, UndecodedVideo)
        url = source.source if isinstance(source, UndecodedVideo) else source
        if not is_web_url(url):
            yield source
            return
        limits: FileLimits = self._video_limits if is_file else self._limits
        async with self._downloads.hold(current_client.get(owner), owner):
            data = await download(str(url), describe(url, limits.kind), limits, self._access)
            yield replace(source, source=data) if isinstance(source, UndecodedVideo) else data

    async def read(self, source: str | Path | bytes) -> bytes:
        """Read the bytes of a file, of a ``data:`` URL, or of an image that was downloaded.

        Raises:
            ImageError: the file is missing, not allowed, or cannot be read.
            ImageLimitError: the file exceeds a limit.
        """
        return await self.run(lambda: read_image(source, self._limits, self._access))

    async def read_video(self, video: UndecodedVideo) -> UndecodedVideo:
        """Read a video like :meth:`read`, and return it with its bytes.

        Raises:
            VideoError: the file is missing, not allowed, or cannot be read.
            VideoLimitError: the file exceeds a limit.
        """
        if isinstance(video.source, tuple):  # each frame has a file of its own
            return video
        read = partial(read_file, video.source, self._video_limits, self._access)
        return replace(video, source=await self.run(read))

    async def run(self, function: Callable[[], _T]) -> _T:
        """Run a function in one of the threads that read files."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function)

    async def stop(self, timeout_s: float) -> bool:
        """Stop the threads; whether they ended within ``timeout_s`` seconds."""
        return await self._readers.stop(timeout_s)
