"""The flat layout: settings of the text part and of the vision part side by side in config.json.

Vision settings begin with ``mm_``, the tower is named in ``mm_vision_tower``, and the text part's
tensors have the names of its standard architecture already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vlcore.checkpoint.checkpoint import Checkpoint, renamed
from vlcore.clip import ClipSource
from vlcore.errors import ConfigError
from vlcore.language.model import LanguageModel
from vlcore.settings import integer, one_of
from vlcore.vocabulary import follow_sentencepiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PROJECTOR_PREFIX", "FlatLanguageModel", "FlatVisionPart"]

PROJECTOR_PREFIX = "model.mm_projector."
_TOWER_PREFIXES = (
    "model.vision_tower.vision_tower.vision_model.",
    "model.vision_tower.vision_tower.",
)
# Keys that say nothing of the text part.
_VISION_KEYS = ("mm_", "tune_mm", "freeze_mm", "unfreeze_mm", "use_mm", "image_", "tokenizer_")
_TEXT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


@dataclass(frozen=True)
class FlatVisionPart:
    """What config.json says of the vision part; no tensor has been read."""

    source: ClipSource
    layer: int
    """Index into the tower's hidden states; 0 is the embeddings, negative counts from the end."""
    keep_class_token: bool
    aspect: str
    """How a picture becomes square, in the words of ``image_aspect_ratio``."""
    hidden_size: int

    @classmethod
    def read(cls, checkpoint: Checkpoint, *, aspects: Sequence[str] = ("square", "pad")) -> Self:
        """Read a checkpoint's files.

        Args:
            checkpoint: in the flat layout.
            aspects: the values of ``image_aspect_ratio`` that are known; without one it is
                ``"square"``, which resizes and crops.

        Raises:
            CheckpointNotFoundError: the tower that is named is not there.
            ConfigError: values are missing, unknown, or do not fit each other.
            TensorError: no file holds the tower.
        """
        config = checkpoint.config
        where = f"config.json of {checkpoint.name}"
        tower = config.get("mm_vision_tower")
        if not isinstance(tower, str) or not tower:
            raise ConfigError(f"{where}: mm_vision_tower must name the tower; it is {tower!r}")
        feature = one_of(
            config, "mm_vision_select_feature", ("patch", "cls_patch"), where, default="patch"
        )
        part = cls(
            source=ClipSource.named(checkpoint, tower, _TOWER_PREFIXES),
            layer=integer(config, "mm_vision_select_layer", where, default=-2),
            keep_class_token=feature == "cls_patch",
            aspect=one_of(config, "image_aspect_ratio", aspects, where, default="square"),
            hidden_size=integer(config, "hidden_size", where),
        )
        width = part.source.config.hidden_size
        if (stated := integer(config, "mm_hidden_size", where, default=width)) != width:
            raise ConfigError(
                f"{where}: mm_hidden_size is {stated}, and the tower {tower!r} is {width} wide: "
                "does the tower belong to this checkpoint?"
            )
        return part


class FlatLanguageModel(LanguageModel):
    """The text part of the flat layout, tokenised as sentencepiece does it.

    Source: released code of this layout splits a prompt at its images and gives each piece to
    transformers' slow tokenizer, which is sentencepiece's own.
    """

    @classmethod
    def read(cls, checkpoint: Checkpoint, *, model_type: str, architecture: str) -> Self:
        """Describe the text part; no weights are read.

        Args:
            checkpoint: in the flat layout.
            model_type: of the standard architecture, such as ``"llama"``.
            architecture: its name, such as ``"LlamaForCausalLM"``.

        Raises:
            ConfigError: config.json lacks what every text part states.
        """
        config = checkpoint.config
        if missing := [key for key in _TEXT_KEYS if key not in config]:
            raise ConfigError(
                f"config.json of {checkpoint.name} lacks {', '.join(missing)}, which describe "
                "the language model"
            )
        text = {key: value for key, value in config.items() if not key.startswith(_VISION_KEYS)}
        text |= {"model_type": model_type, "architectures": [architecture]}
        names = ("lm_head.", "model.embed_tokens.", "model.layers.", "model.norm.")
        return cls(checkpoint, text, renamed(checkpoint, {name: name for name in names}))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        # Not as config.json says: its model_type may mean another model to transformers.
        tokenizer = self.checkpoint.tokenizer(self.transformers_config)
        follow_sentencepiece(tokenizer, self.checkpoint.directory)
        return tokenizer
