"""The vision settings of a checkpoint, in the original and in llava-hf's layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlcore import Checkpoint, ConfigError, empty_weights
from vlcore.clip import ClipSource, Size, mlp_projector, read_pinpoints
from vlcore.flat_layout import PROJECTOR_PREFIX, FlatVisionPart
from vlcore.settings import integer, one_of

_DEFAULT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# The default vision_config of transformers' LlavaConfig.
_HF_DEFAULT_TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@dataclass(frozen=True)
class TileSettings:
    """How an image is cut into tiles, and how the embeddings of the tiles are arranged."""

    canvases: tuple[Size, ...] = ()
    """The possible canvases of an image; empty if it is not cut into tiles."""
    merge: str = "flat"
    """``"flat"``, ``"spatial"`` or ``"spatial_unpad"``."""
    rounds_unpad: bool = False
    """Whether the unpadded size is rounded to 7 digits before truncation, as in llava-hf."""


@dataclass(frozen=True)
class VisionSettings:
    """The vision settings of a checkpoint, before any tensor is read."""

    source: ClipSource
    layer: int
    """Index of the encoder's hidden state; 0 is the embeddings, negative counts from the end."""
    keep_class_token: bool
    pads: bool
    tiles: TileSettings
    projector: nn.Module
    projector_prefixes: Mapping[str, str]
    newline_name: str | None
    hidden_size: int


def is_hf(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is in llava-hf's layout rather than the original one."""
    return "vision_config" in config or "text_config" in config


def read_settings(checkpoint: Checkpoint) -> VisionSettings:
    """Read the vision settings in the original or in llava-hf's layout; no tensor is read.

    Raises:
        ConfigError: the settings are of another kind of model, or impossible.
        TensorError: no file holds the vision encoder.
    """
    return _read_hf(checkpoint) if is_hf(checkpoint.config) else _read_original(checkpoint)


def _read_original(checkpoint: Checkpoint) -> VisionSettings:
    config = checkpoint.config
    where = f"config.json of {checkpoint.name}"
    flat = FlatVisionPart.read(checkpoint, aspects=("square", "pad", "anyres"))
    merges = ("flat", "spatial", "spatial_unpad")
    tiles = TileSettings(merge=one_of(config, "mm_patch_merge_type", merges, where, default="flat"))
    if flat.aspect == "anyres":
        canvases = _canvases(config, flat.source, where)
        tiles = TileSettings(canvases, tiles.merge)
    return VisionSettings(
        source=flat.source,
        layer=flat.layer,
        keep_class_token=flat.keep_class_token,
        pads=flat.aspect == "pad",
        tiles=tiles,
        projector=_original_projector(
            config.get("mm_projector_type", "linear"),
            flat.source.config.hidden_size,
            flat.hidden_size,
            where,
        ),
        projector_prefixes={PROJECTOR_PREFIX: ""},
        newline_name="model.image_newline",
        hidden_size=flat.hidden_size,
    )


def _read_hf(checkpoint: Checkpoint) -> VisionSettings:
    config = checkpoint.config
    where = f"config.json of {checkpoint.name}"
    processor = checkpoint.read_json("preprocessor_config.json")
    if processor is None:
        processor = (checkpoint.read_json("processor_config.json") or {}).get("image_processor", {})
    root = "model." if checkpoint.has_tensors("model.multi_modal_projector.") else ""
    source = ClipSource.inside(
        checkpoint,
        config.get("vision_config") or _HF_DEFAULT_TOWER,
        processor,
        (f"{root}vision_tower.vision_model.", f"{root}vision_tower."),
    )
    strategy = one_of(
        config, "vision_feature_select_strategy", ("default", "full"), where, default="default"
    )
    one_of(config, "projector_hidden_act", ("gelu",), where, default="gelu")
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ConfigError(f"{where}: one vision_feature_layer is supported, not {layer!r}")
    is_next = "LlavaNextForConditionalGeneration" in config["architectures"]
    tiles = TileSettings()
    if is_next:
        canvases = _canvases(config, source, where, height_first=True)
        tiles = TileSettings(canvases, "spatial_unpad", rounds_unpad=True)
    pads = processor.get("image_processor_type", "").startswith("LlavaImageProcessor")
    hidden_size = integer(config.get("text_config") or {}, "hidden_size", where, default=4096)
    has_bias = config.get("multimodal_projector_bias", True)
    projector = mlp_projector(source.config.hidden_size, hidden_size, 2, bias=has_bias)
    linear = f"{root}multi_modal_projector.linear_"
    has_newline = config.get("use_image_newline_parameter", True)
    return VisionSettings(
        source=source,
        layer=layer,
        keep_class_token=strategy == "full",
        pads=bool(pads and processor.get("do_pad")) and not is_next,
        tiles=tiles,
        projector=projector,
        projector_prefixes={f"{linear}1.": "0.", f"{linear}2.": "2."},
        newline_name=f"{root}image_newline" if has_newline else None,
        hidden_size=hidden_size,
    )


def _original_projector(kind: str, width: int, hidden_size: int, where: str) -> nn.Module:
    """Build a projector to be filled, with the key names of the reference implementation."""
    if kind == "identity" and width != hidden_size:
        raise ConfigError(
            f"{where}: an identity projector needs equal hidden sizes of the vision encoder and "
            f"the language model; they are {width} and {hidden_size}"
        )
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        with empty_weights():
            return nn.Linear(width, hidden_size)
    depth = int(kind.removeprefix("mlp").removesuffix("x_gelu"))
    return mlp_projector(width, hidden_size, depth)


def _canvases(
    config: Mapping[str, Any], source: ClipSource, where: str, *, height_first: bool = False
) -> tuple[Size, ...]:
    pinpoints = config.get("image_grid_pinpoints", _DEFAULT_PINPOINTS)
    canvases = read_pinpoints(pinpoints, where, height_first=height_first)
    edge = source.config.image_size
    for canvas in canvases:
        if canvas[0] % edge or canvas[1] % edge:
            raise ConfigError(
                f"{where}: grid pinpoint {canvas} is not a multiple of the encoder's {edge} pixels"
            )
    return canvases
