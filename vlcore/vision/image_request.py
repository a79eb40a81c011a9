"""``ImageRequest``: an image or video that is to be preprocessed, and its label in messages."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from PIL import Image

from vlcore.media.policy import DecodedBudget
from vlcore.media.source import ImageSource, describe
from vlcore.media.undecoded_video import UndecodedVideo, VideoInput
from vlcore.media.video import Video

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ImageRequest:
    """One image or video of a request, as it passes through preprocessing."""

    source: ImageSource | VideoInput
    options: Mapping[str, Any]
    """Options of the vision model's ``preprocess`` or ``preprocess_frames``."""
    label: str
    """Position in the request and description of the source, for error messages."""
    owner: Hashable
    """The request that the image belongs to. Requests take turns."""
    budget: DecodedBudget | None = None
    """Memory that the images of the request may still take."""
    num_images: int = 1
    """Number of images of the request."""
    video_budget: DecodedBudget | None = None
    """Memory that the videos of the request may still take."""


def is_video(source: object) -> bool:
    """Return whether a source is one of a video."""
    return isinstance(source, VideoInput)


def image_label(source: ImageSource | VideoInput, number: int, total: int) -> str:
    """Return the label of an image or video: its number in the request, from 1, and its source."""
    label = f"{'video' if is_video(source) else 'image'} {number} of {total}"
    if isinstance(source, Image.Image):
        return f"{label} ({source.mode}, {source.width} x {source.height})"
    address = source.source if isinstance(source, UndecodedVideo) else source
    return label if isinstance(address, bytes | tuple | Video) else f"{label}, {describe(address)}"
