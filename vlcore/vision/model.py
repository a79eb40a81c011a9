"""``VisionModel``: encodes images as embeddings of the language model.

It knows nothing of prompts or engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlcore.errors import PluginContractError
from vlcore.media.video import Video, VideoSampling
from vlcore.prompts.tokenization import ImageLayout


@dataclass(frozen=True)
class ImageInputs:
    """A preprocessed image or video, the result of ``preprocess`` or ``preprocess_frames``.

    Required in models that define ``tower``.

    Shapes:
        pixels: [tiles, 3, H, W], floating point, on the CPU. H and W are the same for all images
            of a model. The tiles of a video are its frames.
    """

    pixels: Tensor
    layout: Any = None
    """Layout of the image for ``assemble`` and ``ChatTemplate.expand``, such as a grid of tiles, or
    the times of the frames of a video."""
    num_rows: int | None = None
    """Number of embeddings of the image, where it is known before the image is encoded."""
    num_tiles: int | None = None
    """Size of the image in a batch; ``None`` for the length of ``pixels``. State it where
    ``pixels`` are packed patches, [patches, …], whose number is not that of tiles."""


@dataclass(frozen=True)
class ImageRows:
    """The embeddings of one image or video, in the embedding space of the language model.

    Shapes:
        rows: [k, row_width].
    """

    rows: Tensor
    layout: Any = None


def count_tiles(inputs: Any) -> int:
    """Return the size of a preprocessed image in a batch, which is 1 without tiles."""
    if not isinstance(inputs, ImageInputs):
        return 1
    return len(inputs.pixels) if inputs.num_tiles is None else inputs.num_tiles


def image_layout(image: ImageRows) -> ImageLayout:
    """Return the number and layout of an image's embeddings."""
    return ImageLayout(len(image.rows), image.layout)


class VisionModel:
    """Base class of a plugin's vision model.

    A subclass sets :attr:`hidden_size` and defines either :meth:`forward`, or both :meth:`tower`
    and :meth:`assemble`, from which :meth:`forward` is then composed. In the second case, tiles of
    different images share a batch.
    """

    hidden_size: int
    """Width of the embeddings."""
    image_options: frozenset[str] = frozenset()
    """Names of the per-image options that :meth:`preprocess` accepts."""
    video_options: frozenset[str] = frozenset()
    """Names of the per-video options that :meth:`preprocess_frames` accepts, in addition to those
    of :class:`~vlcore.VideoSampling`, which every model that takes videos has."""
    video_sampling: VideoSampling = VideoSampling(num_frames=8)
    """Which frames of a video the model receives; a request may state other values. Frames are
    sampled only here: a processor must not sample them again."""
    fingerprint: str = ""
    """Identifies the weights; set from the checkpoint when the model is loaded."""
    image_background: str | None = None
    """Colour behind transparent pixels, such as ``"white"``. ``None`` drops the transparency, as
    most reference implementations do. A user's own choice takes precedence."""
    is_spread: bool = False
    """Whether the weights are distributed over several devices."""

    @property
    def device(self) -> torch.device:
        """Device of the weights; by default, that of the first module, or else tensor, among the
        attributes."""
        tensor = self._first_tensor()
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights; by default, that of the first module, or else tensor, among the
        attributes."""
        tensor = self._first_tensor()
        return torch.float32 if tensor is None else tensor.dtype

    @cached_property
    def row_width(self) -> int:
        """Width of the results of :meth:`forward`; by default, :attr:`hidden_size`.

        It is ``LanguageModel.row_width`` where embeddings are also added after the first decoder
        layers.
        """
        return self.hidden_size

    @property
    def preprocess_settings(self) -> Any:
        """Settings of :meth:`preprocess` that are not in the checkpoint.

        The ``repr`` of this value is part of the key of cached embeddings, and must be complete.
        """
        return None

    def needed_size(self, size: tuple[int, int]) -> tuple[int, int] | None:  # noqa: ARG002
        """Return the width and height that :meth:`preprocess` resizes an image to at most.

        With ``shrink_on_load``, a JPEG that is much larger is reduced while it is decoded.
        Thread-safe.

        Args:
            size: width and height of the image, after its EXIF orientation is applied.

        Returns:
            The size for any image options, or ``None`` where the full resolution is needed.
        """
        return None

    def request_options(self, num_images: int) -> Mapping[str, Any]:  # noqa: ARG002
        """Return options of :meth:`preprocess` that depend on the number of images of a request.

        They are passed for each image of the request, in addition to its own options, which take
        precedence, and need not be in :attr:`image_options`. The embeddings of an image are cached
        separately for different values.

        Args:
            num_images: number of images of the request.
        """
        return {}

    def preprocess(self, image: Image.Image, **options: Any) -> Any:
        """Convert an image of any PIL mode into an input of :meth:`forward`. Thread-safe.

        Args:
            image: the image.
            options: per-image options, of those listed in :attr:`image_options`, and
                :meth:`request_options`.

        Returns:
            :class:`ImageInputs` in models that define :meth:`tower`, and any value in others.
        """
        if options:
            raise TypeError(f"unexpected image options: {', '.join(sorted(options))}")
        return image

    @property
    def takes_video(self) -> bool:
        """Whether the model takes videos; by default, whether it has :meth:`preprocess_frames`."""
        return type(self).preprocess_frames is not VisionModel.preprocess_frames

    def preprocess_frames(self, video: Video, **options: Any) -> Any:
        """Convert a video into an input of :meth:`forward`. Optional, and thread-safe.

        Its embeddings take the position of the video in the prompt as those of an image do: all in
        a row, or with text between the frames where ``ChatTemplate.expand`` writes it.

        Args:
            video: the sampled frames, with their times.
            options: per-video options, of those listed in :attr:`video_options`.

        Returns:
            :class:`ImageInputs` in models that define :meth:`tower`, and any value in others.
        """
        raise NotImplementedError(f"{type(self).__name__} takes images only, and no videos")

    def forward(self, inputs: Sequence[Any]) -> Sequence[Tensor | ImageRows]:
        """Encode a list of preprocessed images and videos, after moving them to the device.

        Shapes:
            results: [k, row_width] each; k may differ between images.
        """
        pixels = torch.cat([image.pixels for image in inputs])
        with torch.inference_mode():
            features = self.tower(pixels.to(self.device, self.dtype))
            return assemble_batch(self, features, inputs)

    def tower(self, pixels: Tensor) -> Tensor:
        """Encode tiles independently of each other.

        Shapes:
            pixels: [N, 3, H, W].
            result: [N, T, D].
        """
        raise NotImplementedError(self._missing_methods())

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor | ImageRows:
        """Combine the features of one image's tiles into the embeddings of the image.

        Shapes:
            features: [tiles, T, D].
            result: [k, row_width].
        """
        raise NotImplementedError(self._missing_methods())

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Tensor | ImageRows]:
        """Call :meth:`forward`."""
        return self.forward(inputs)

    def _first_tensor(self) -> Tensor | None:
        values = vars(self).values()
        modules = (value for value in values if isinstance(value, nn.Module))
        parameters = (next(module.parameters(), None) for module in modules)
        found = next((parameter for parameter in parameters if parameter is not None), None)
        # A tensor that is no weight, such as a mean of pixels, may stay on the CPU in float32.
        return next((v for v in values if isinstance(v, Tensor)), None) if found is None else found

    def _missing_methods(self) -> str:
        return f"{type(self).__name__} must define `forward`, or both `tower` and `assemble`"


def has_tower(model: VisionModel) -> bool:
    """Return whether the model's forward is composed of ``tower`` and ``assemble``."""
    return type(model).forward is VisionModel.forward


def assemble_batch(
    model: VisionModel, features: Tensor, inputs: Sequence[ImageInputs]
) -> list[ImageRows]:
    """Assemble the embeddings of each image in a batch, the second half of the default forward.

    Shapes:
        features: [tiles of all images, T, D].
    """
    per_image = torch.split(features, [len(image.pixels) for image in inputs])
    assembled = [
        model.assemble(tiles, image) for tiles, image in zip(per_image, inputs, strict=True)
    ]
    return [
        rows if isinstance(rows, ImageRows) else ImageRows(rows, image.layout)
        for rows, image in zip(assembled, inputs, strict=True)
    ]


def check_results(
    model: VisionModel, results: object, num_images: int
) -> list[ImageRows | PluginContractError]:
    """Check the types and shapes of a forward's results, but not their values.

    Returns:
        For each image its embeddings, or an error that describes what is wrong with them.

    Raises:
        PluginContractError: the results are not a list, or not one for each image.
    """
    name = type(model).__name__
    if not isinstance(results, Sequence | Tensor):
        raise PluginContractError(
            f"{name}.forward must return a list of image embeddings, one item for each image; "
            f"it returned {type(results).__name__}"
        )
    if len(results) != num_images:
        raise PluginContractError(
            f"{name}.forward must return one result for each of {num_images} image(s); it returned "
            f"{len(results)} result(s)"
        )
    return [_as_rows(model, result) for result in results]


def not_finite(model: VisionModel) -> PluginContractError:
    """Return the error for embeddings that hold NaN or infinity."""
    return PluginContractError(
        f"{type(model).__name__}.forward returned NaN or Inf: try another dtype"
    )


def encode_batch(model: VisionModel, inputs: Sequence[Any]) -> list[ImageRows]:
    """Encode preprocessed images in one forward pass, and check the results.

    Raises:
        PluginContractError: the number of results is wrong, or the shape or values of one.
    """
    with torch.inference_mode():
        results = model.forward(inputs)
    encoded = []
    for position, image in enumerate(check_results(model, results, len(inputs)), 1):
        if isinstance(image, ImageRows) and not torch.isfinite(image.rows).all():
            image = not_finite(model)
        if isinstance(image, PluginContractError):
            raise PluginContractError(f"image {position} of {len(inputs)}: {image}")
        encoded.append(image)
    return encoded


def _as_rows(model: VisionModel, result: Any) -> ImageRows | PluginContractError:
    name = type(model).__name__
    image_rows = result if isinstance(result, ImageRows) else ImageRows(result)
    rows = image_rows.rows
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != model.row_width:
        actual = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        return PluginContractError(
            f"{name}.forward must return image embeddings of shape [k, {model.row_width}]; it "
            f"returned {actual}"
        )
    if rows.untyped_storage().nbytes() > rows.nbytes:  # a view would keep its whole batch alive
        return ImageRows(rows.clone(), image_rows.layout)
    return image_rows
