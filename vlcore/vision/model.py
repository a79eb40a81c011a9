"""``VisionModel``: images in, rows of the language model's embedding space out.

Knows nothing of prompts or engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlcore.errors import PluginContractError
from vlcore.prompts.tokenization import ImageLayout


@dataclass(frozen=True)
class ImageInputs:
    """What ``preprocess`` returns where ``tower`` is used.

    Shapes:
        pixels: [tiles, 3, H, W], floating point, on the CPU; H and W the same for all images of a
            model.
    """

    pixels: Tensor
    layout: Any = None
    """Anything ``assemble`` and ``ChatTemplate.expand`` want to know, such as a grid."""
    num_rows: int | None = None
    """How many rows the image will give, where that is known before it is encoded."""


@dataclass(frozen=True)
class ImageRows:
    """One image as the language model reads it.

    Shapes:
        rows: [k, hidden_size].
    """

    rows: Tensor
    layout: Any = None


def image_layout(image: ImageRows) -> ImageLayout:
    """Return the number and layout of an image's embeddings."""
    return ImageLayout(len(image.rows), image.layout)


class VisionModel:
    """Base class of a plugin's vision model.

    A subclass sets :attr:`hidden_size` and writes either :meth:`forward`, or the pair
    :meth:`tower` and :meth:`assemble` from which :meth:`forward` is then built. With the pair,
    tiles of different images share a batch.
    """

    hidden_size: int
    """Width of every row."""
    image_options: frozenset[str] = frozenset()
    """Names of the per-image options that :meth:`preprocess` takes."""
    fingerprint: str = ""
    """Tells the weights apart from any others; set from the checkpoint when it is loaded."""
    is_spread: bool = False
    """Whether the weights lie on several devices."""

    @property
    def device(self) -> torch.device:
        """Where the weights are; by default, where the first tensor among the attributes is."""
        tensor = self._first_tensor()
        return torch.device("cpu") if tensor is None else tensor.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights; by default, that of the first tensor among the attributes."""
        tensor = self._first_tensor()
        return torch.float32 if tensor is None else tensor.dtype

    @property
    def preprocess_settings(self) -> Any:
        """What :meth:`preprocess` depends on beside the checkpoint; its ``repr`` says all of it."""
        return None

    def needed_size(self, size: tuple[int, int]) -> tuple[int, int] | None:  # noqa: ARG002
        """Say to what width and height :meth:`preprocess` resizes a picture, whatever the options.

        A JPEG that is much larger may then be made smaller while it is decoded, if whoever runs the
        model asks for that (``shrink_on_load``). Thread-safe.

        Args:
            size: width and height of the upright picture.

        Returns:
            ``None`` where every pixel matters.
        """
        return None

    def preprocess(self, image: Image.Image, **options: Any) -> Any:
        """Turn one picture of any PIL mode into what :meth:`forward` takes. Thread-safe.

        Args:
            image: the picture.
            options: the ones named in :attr:`image_options`.

        Returns:
            :class:`ImageInputs` where :meth:`tower` is used, anything else where not.
        """
        if options:
            raise TypeError(f"unexpected image options: {', '.join(sorted(options))}")
        return image

    def forward(self, inputs: Sequence[Any]) -> Sequence[Tensor | ImageRows]:
        """Encode a list of preprocessed images; moves them to the device first.

        Shapes:
            each result: [k, hidden_size], k free for each image.
        """
        pixels = torch.cat([image.pixels for image in inputs])
        with torch.inference_mode():
            features = self.tower(pixels.to(self.device, self.dtype))
            return assemble_batch(self, features, inputs)

    def tower(self, pixels: Tensor) -> Tensor:
        """Encode tiles, each for itself.

        Shapes:
            pixels: [N, 3, H, W]; result: [N, T, D].
        """
        raise NotImplementedError(self._neither())

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor | ImageRows:
        """Put the features of one image's tiles together as rows.

        Shapes:
            features: [tiles, T, D]; result: [k, hidden_size].
        """
        raise NotImplementedError(self._neither())

    def __call__(self, inputs: Sequence[Any]) -> Sequence[Tensor | ImageRows]:
        """Call :meth:`forward`."""
        return self.forward(inputs)

    def _first_tensor(self) -> Tensor | None:
        for value in vars(self).values():
            if isinstance(value, Tensor):
                return value
            if isinstance(value, nn.Module):
                parameter = next(value.parameters(), None)
                if parameter is not None:
                    return parameter
        return None

    def _neither(self) -> str:
        return f"{type(self).__name__} must define forward, or both tower and assemble"


def has_tower(model: VisionModel) -> bool:
    """Whether the model's forward is the one built from ``tower`` and ``assemble``."""
    return type(model).forward is VisionModel.forward


def assemble_batch(
    model: VisionModel, features: Tensor, inputs: Sequence[ImageInputs]
) -> list[ImageRows]:
    """Take the second half of the default forward: each image's rows from its tiles' features.

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
    """Check what a forward returned, but for the values; for each image its rows or what is wrong.

    Raises:
        PluginContractError: the results are no list, or not one for each image.
    """
    name = type(model).__name__
    if not isinstance(results, Sequence | Tensor):
        raise PluginContractError(
            f"{name}.forward must return a list of rows, one for each image; "
            f"it returned {type(results).__name__}"
        )
    if len(results) != num_images:
        raise PluginContractError(
            f"{name}.forward was given {num_images} image(s) and returned {len(results)} result(s)"
        )
    return [_as_rows(model, result) for result in results]


def not_finite(model: VisionModel) -> PluginContractError:
    """Say that rows hold something else than numbers."""
    return PluginContractError(
        f"{type(model).__name__}.forward returned NaN or Inf: try another dtype"
    )


def encode_batch(model: VisionModel, inputs: Sequence[Any]) -> list[ImageRows]:
    """Encode preprocessed images in one forward and check what comes back.

    Raises:
        PluginContractError: a wrong number of results, or rows of a wrong shape or value.
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
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != model.hidden_size:
        came = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        return PluginContractError(
            f"{name}.forward must return rows [k, {model.hidden_size}]; it returned {came}"
        )
    if rows.untyped_storage().nbytes() > rows.nbytes:  # a view would keep its whole batch
        return ImageRows(rows.clone(), image_rows.layout)
    return image_rows
