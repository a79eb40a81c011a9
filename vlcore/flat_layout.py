"""The flat layout: config.json holds the settings of the language model and the vision model.

The keys of vision settings begin with ``mm_``. ``mm_vision_tower`` names the vision encoder. The
tensors of the language model already have the names of its standard architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.checkpoint.renaming import renamed
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
# Prefixes of keys that do not concern the language model.
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
    """The vision settings of config.json, before any tensor is read."""

    source: ClipSource
    layer: int
    """Index of the encoder's hidden state; 0 is the embeddings, negative counts from the end."""
    keep_class_token: bool
    aspect: str
    """How an image is made square: a value of ``image_aspect_ratio``."""
    hidden_size: int

    @classmethod
    def read(cls, checkpoint: Checkpoint, *, aspects: Sequence[str] = ("square", "pad")) -> Self:
        """Read the vision settings of a checkpoint.

        Args:
            checkpoint: a checkpoint in the flat layout.
            aspects: the supported values of ``image_aspect_ratio``. The default value is
                ``"square"``, which resizes and crops.

        Raises:
            CheckpointNotFoundError: the named vision encoder does not exist.
            ConfigError: values are missing, unknown or inconsistent.
            TensorError: no file holds the vision encoder.
        """
        config = checkpoint.config
        where = f"config.json of {checkpoint.name}"
        tower = config.get("mm_vision_tower")
        if not isinstance(tower, str) or not tower:
            raise ConfigError(
                f"{where}: mm_vision_tower must name the vision encoder; it is {tower!r}"
            )
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
                f"{where}: mm_hidden_size is {stated}, but the hidden size of the vision encoder "
                f"{tower!r} is {width}: does it belong to this checkpoint?"
            )
        return part


class FlatLanguageModel(LanguageModel):
    """The language model of the flat layout, with text tokenised as by sentencepiece.

    Source: the reference implementation of this layout splits a prompt at its images, and tokenises
    each chunk with transformers' slow tokenizer, which uses sentencepiece.
    """

    @classmethod
    def read(cls, checkpoint: Checkpoint, *, model_type: str, architecture: str) -> Self:
        """Describe the language model; no weights are read.

        Args:
            checkpoint: a checkpoint in the flat layout.
            model_type: the model type of the standard architecture, such as ``"llama"``.
            architecture: the name of the standard architecture, such as ``"LlamaForCausalLM"``.

        Raises:
            ConfigError: config.json lacks a required key.
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
        # Not by config.json: its model_type can mean another model to transformers.
        tokenizer = self.checkpoint.tokenizer(self.transformers_config)
        follow_sentencepiece(tokenizer, self.checkpoint.directory)
        return tokenizer
