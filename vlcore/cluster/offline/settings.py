"""``EncoderSettings``: the model and the options that every encoder of a job has."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlcore._utils.device import as_device, as_dtype
from vlcore.plugins.stages import ModelStages
from vlcore.vision.encoder import ImageEncoder
from vlcore.vision.model import VisionModel


@dataclass(frozen=True)
class EncoderSettings:
    """The model and the options that every encoder of a job has."""

    model: str
    plugin: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_batch_size: int = 8
    shrink_on_load: bool = False
    image_background: str | None = None
    fingerprint: str = ""
    """Fingerprint of the checkpoint on the machine that started the job. The keys of images contain
    it, and must not depend on the machine that computes them."""

    def stages(self) -> ModelStages:
        """Open the checkpoint."""
        return ModelStages(self.model, plugin=self.plugin, revision=self.revision)

    def vision_model(self, device: torch.device | None = None) -> VisionModel:
        """Load the vision model; on the meta device, its weights have no values."""
        model = self.stages().vision_model(device or as_device(self.device), as_dtype(self.dtype))
        model.fingerprint = self.fingerprint or model.fingerprint
        return model

    def encoder(self, model: VisionModel) -> ImageEncoder:
        """Create the encoder.

        Raises:
            OptionError: an option is out of range.
        """
        return ImageEncoder(
            model,
            max_batch_size=self.max_batch_size,
            rows_device="cpu",
            shrink_on_load=self.shrink_on_load,
            image_background=self.image_background,
        )
