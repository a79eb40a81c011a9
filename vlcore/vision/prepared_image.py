"""``PreparedImage``: an image or video that is ready for the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlcore.prompts.tokenization import ImageLayout
from vlcore.vision.model import ImageInputs, ImageRows, image_layout


@dataclass(frozen=True)
class PreparedImage:
    """A preprocessed image or video, or its embeddings if they are cached."""

    label: str
    """Position in the request, description of the source and size, for error messages."""
    key: str
    """Key of the image's embeddings in the cache."""
    inputs: Any = None
    """Result of the vision model's ``preprocess`` or ``preprocess_frames``."""
    num_tiles: int = 1
    """Size of the image in a batch."""
    rows: ImageRows | None = None
    """The cached embeddings of the image."""
    file: str = ""
    """Key of the image's file in the cache, if it comes from a file."""

    @property
    def layout(self) -> ImageLayout | None:
        """Layout of the image's embeddings, if it is known before the image is encoded."""
        if self.rows is not None:
            return image_layout(self.rows)
        if isinstance(self.inputs, ImageInputs) and self.inputs.num_rows is not None:
            return ImageLayout(self.inputs.num_rows, self.inputs.layout)
        return None
