"""``Encoder``, the interface of what encodes the images of requests, here or elsewhere.

Images stand for videos too, where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from PIL import Image

from vlcore.errors import VideoError
from vlcore.media.source import ImageSource
from vlcore.media.undecoded_video import VideoInput
from vlcore.media.video import Video
from vlcore.prompts.tokenization import ImageLayout
from vlcore.vision.model import ImageRows
from vlcore.vision.stats import EncoderStats


class Prepared(Protocol):
    """An image that is ready to be encoded."""

    @property
    def key(self) -> str:
        """Key of the image's content; images with the same key have the same embeddings."""

    @property
    def layout(self) -> ImageLayout | None:
        """Layout of the image's embeddings, if it is known before the image is encoded."""


_P = TypeVar("_P", bound=Prepared)


class Encoder(Protocol[_P]):
    """Encodes the images of concurrent requests, in two steps.

    :class:`~vlcore.ImageEncoder` is one. Between the steps, a request whose prompt is too long is
    refused. Cancelling a step frees what it has taken.
    """

    @property
    def image_options(self) -> frozenset[str]:
        """Names of the options that an image may have."""

    @property
    def takes_video(self) -> bool:
        """Whether the encoder takes videos."""

    async def prepare(
        self,
        images: Sequence[ImageSource | VideoInput],
        options: Sequence[Mapping[str, Any]] | None = None,
        *,
        room: int = 0,
    ) -> list[_P]:
        """Read, decode and preprocess the images of one request, in order.

        Args:
            images: the images and videos.
            options: options for each of them.
            room: number of embeddings, of all images together, that certainly fit into the prompt.
                Images that are known to have no more may be encoded in this step.

        Raises:
            OptionError: an image option is unknown.
            ImageError: an image cannot be read or preprocessed, or exceeds a limit.
            VideoError: the same for a video, or the encoder takes no videos.
        """

    async def encode_prepared(self, images: Sequence[_P]) -> list[ImageRows]:
        """Encode prepared images, in order.

        Raises:
            ImageError: an image cannot be encoded.
            PluginContractError: the vision model did not return image embeddings.
            EngineClosedError: the encoder was closed.
        """

    async def load(self, sources: Sequence[ImageSource | VideoInput]) -> list[Image.Image | Video]:
        """Read and decode the images of one request, without encoding them."""

    def stats(self) -> EncoderStats:
        """Take a snapshot of the statistics. Thread-safe."""

    async def close(self) -> None:
        """Fail the waiting images, and free the model."""


def check_videos(encoder: Encoder[Any], sources: Sequence[object]) -> None:
    """Check that an encoder takes videos, if there are some.

    Raises:
        VideoError: it does not.
    """
    if not encoder.takes_video and any(isinstance(source, VideoInput) for source in sources):
        raise VideoError(
            "the model takes images only here, and no videos: leave out the video, or choose a "
            "model that takes videos"
        )
