"""The vision encoder and the connector, both classes of transformers, and their tiles."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch import Tensor, nn
from transformers.models.idefics3.configuration_idefics3 import Idefics3Config
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.modeling_idefics3 import (
    Idefics3Connector,
    Idefics3VisionTransformer,
)

from vlcore import (
    Checkpoint,
    ConfigError,
    ImageInputs,
    OptionError,
    VisionModel,
    empty_weights,
    renamed,
)


class Idefics3VisionModel(VisionModel):
    """Encodes an image as square tiles of one size and, if it was split, once more as a whole.

    Source: ``Idefics3Model.get_image_features`` of transformers.
    """

    image_options = frozenset({"detail"})

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        config: Any = _read_config(checkpoint)
        self.processor: Any = _load_processor(checkpoint)
        self.hidden_size: int = config.text_config.hidden_size
        edge = self.processor.max_image_size["longest_edge"]
        self.side = edge // config.vision_config.patch_size
        """Patches along each edge of a tile."""
        if self.side % config.scale_factor:
            raise ConfigError(
                f"{checkpoint.name} has tiles of {self.side} x {self.side} patches, which its "
                f"scale_factor of {config.scale_factor} does not divide: max_image_size of "
                "preprocessor_config.json and config.json do not match"
            )
        self.rows_per_tile = (self.side // config.scale_factor) ** 2
        with empty_weights():
            self.vision_model = Idefics3VisionTransformer(config.vision_config)
            self.connector = Idefics3Connector(config)  # type: ignore[no-untyped-call]
        parts = nn.ModuleDict({"vision_model": self.vision_model, "connector": self.connector})
        parts.eval()
        sources = renamed(checkpoint, {f"model.{name}.": f"{name}." for name in parts})
        checkpoint.load_module(parts, sources, device=device, dtype=dtype)

    def preprocess(  # type: ignore[override]  # it takes the options of image_options alone
        self, image: Image.Image, *, detail: str = "high"
    ) -> ImageInputs:
        """Split an image into tiles.

        Args:
            image: an image of any mode.
            detail: ``"high"`` splits the image as the checkpoint specifies; ``"low"`` gives only
                the whole image.

        Raises:
            OptionError: another value of ``detail``.
        """
        if detail not in ("high", "low"):
            raise OptionError(f"detail must be 'high' or 'low'; it is {detail!r}")
        options: dict[str, Any] = {"do_image_splitting": False} if detail == "low" else {}
        tiles = self.processor(image, return_row_col_info=True, return_tensors="pt", **options)
        pixels = tiles["pixel_values"][0]
        layout = (tiles["rows"][0][0], tiles["cols"][0][0])
        return ImageInputs(pixels, layout, num_rows=len(pixels) * self.rows_per_tile)

    def tower(self, pixels: Tensor) -> Tensor:
        """Encode tiles.

        Tiles have no padding, so attention needs no mask. The vision encoder is run module by
        module because its own ``forward`` looks for padding, which synchronizes the device.

        Shapes:
            pixels: [N, 3, H, W]; result: [N, T, D].
        """
        everywhere = pixels.new_ones((len(pixels), self.side, self.side), dtype=torch.bool)
        patches = self.vision_model.embeddings(pixels, everywhere)
        states = self.vision_model.encoder(patches).last_hidden_state
        features: Tensor = self.connector(self.vision_model.post_layernorm(states))
        return features

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:  # noqa: ARG002
        """Concatenate the embeddings of the tiles; the template writes the tokens between them.

        Shapes:
            features: [tiles, T, D]; result: [tiles * T, D].
        """
        return features.flatten(0, 1)


def _read_config(checkpoint: Checkpoint) -> Idefics3Config:
    """Read the configuration of the vision encoder and the connector, the same for SmolVLM."""
    keys = ("vision_config", "text_config", "scale_factor")
    given = {key: checkpoint.config[key] for key in keys if key in checkpoint.config}
    try:
        return Idefics3Config(**given)
    except StrictDataclassError as error:
        raise ConfigError(f"config.json of {checkpoint.name}: {error}") from error


def _load_processor(checkpoint: Checkpoint) -> Any:
    """Read the settings, from a file of their own or from the processor's.

    Pillow resizes, also where torchvision is installed: pixels are the same everywhere.
    """
    settings = checkpoint.read_json("preprocessor_config.json")
    if settings is None:
        settings = (checkpoint.read_json("processor_config.json") or {}).get("image_processor")
    if settings is None:
        raise ConfigError(
            f"{checkpoint.name} has neither preprocessor_config.json nor image_processor in "
            "processor_config.json, which define how images are split: copy them from the "
            "original repository"
        )
    return Idefics3ImageProcessorPil.from_dict(settings)
