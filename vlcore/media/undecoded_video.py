"""``UndecodedVideo``: the source of a video, and which of its frames a request asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlcore.media.source import ImageSource
from vlcore.media.video import Video, VideoSampling

SAMPLING_OPTIONS = frozenset(each.name for each in fields(VideoSampling))
"""Names of the options of a video that state which frames of it a model receives."""

_SUFFIXES = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


@dataclass(frozen=True)
class UndecodedVideo:
    """A video that is not decoded yet."""

    source: str | Path | bytes | tuple[ImageSource, ...]
    """A path, an http(s), ``file:`` or ``data:`` URL, the bytes of a file, or the sources of all
    frames."""
    sampling: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Values of :class:`VideoSampling` that replace those of the vision model; of frames, only
    ``fps``, which is how many of them are shown in a second."""

    def sampled_as(self, usual: VideoSampling, max_frames: int) -> VideoSampling:
        """Return which frames of the video a model receives.

        Args:
            usual: how the vision model samples videos.
            max_frames: the largest number of frames, unless the request itself states one.

        Raises:
            OptionError: a value is out of range.
        """
        most = max_frames if usual.max_frames is None else min(max_frames, usual.max_frames)
        values: dict[str, Any] = {"max_frames": most, **self.sampling}
        if values.keys() & {"fps", "num_frames"}:  # each of them replaces both
            values = {"fps": None, "num_frames": None} | values
        return replace(usual, **values)


VideoInput = UndecodedVideo | Video
"""A video of a request."""


def is_video_name(text: str) -> bool:
    """Return whether a path or URL names a video, by its suffix or by the type of a data URL."""
    if text[:11].lower() == "data:video/":
        return True
    if "://" not in text[:10]:
        return text.lower().endswith(_SUFFIXES)
    try:
        return urlsplit(text).path.lower().endswith(_SUFFIXES)
    except ValueError:  # it is no URL
        return False
