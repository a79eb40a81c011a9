"""What a checkpoint's files say of its vision part, in the original and in llava-hf's layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vl_plugin_llava import images
from vl_plugin_llava.clip import ClipConfig
from vl_plugin_llava.images import ClipProcessor, Size
from vlcore import Checkpoint, ConfigError, TensorError, TensorSource, empty_weights, renamed

_TOWER_KEYS = re.compile(r"embeddings\.|pre_layrnorm\.|encoder\.layers\.")

_DEFAULT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# What transformers' LlavaConfig means where it names no vision_config.
_HF_DEFAULT_TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@dataclass(frozen=True)
class LlavaSettings:
    """How a checkpoint turns an image into rows."""

    select_layer: int
    """Index into the tower's hidden states; 0 is the embeddings, negative counts from the end."""
    keep_class_token: bool
    aspect: str
    """``"square"`` (resize and crop), ``"pad"`` or ``"anyres"``."""
    merge: str = "flat"
    """``"flat"``, ``"spatial"`` or ``"spatial_unpad"``: how the tiles' rows are put together."""
    canvases: tuple[Size, ...] = ()
    rounds_unpad: bool = False
    """llava-hf rounds the unpadded size to 7 digits before it cuts off the fraction."""


def is_hf(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is in llava-hf's layout rather than the original one."""
    return "vision_config" in config or "text_config" in config


@dataclass(frozen=True)
class VisionParts:
    """What a checkpoint's files say, before any tensor is read."""

    clip: ClipConfig
    processor: ClipProcessor
    settings: LlavaSettings
    tower_checkpoint: Checkpoint
    tower_prefix: str
    projector: nn.Module
    projector_sources: Mapping[str, TensorSource]
    newline_name: str | None
    hidden_size: int


def read_parts(checkpoint: Checkpoint) -> VisionParts:
    """Read a checkpoint's files in the original or in llava-hf's layout; no tensor is read.

    Raises:
        ConfigError: they describe something else, or something impossible.
        TensorError: no file holds the tower.
    """
    return _read_hf(checkpoint) if is_hf(checkpoint.config) else _read_original(checkpoint)


def _read_original(checkpoint: Checkpoint) -> VisionParts:
    config = checkpoint.config
    where = f"config.json of {checkpoint.name}"
    tower_checkpoint = checkpoint.related(config["mm_vision_tower"])
    clip = ClipConfig.from_json(tower_checkpoint.config, f"the tower {tower_checkpoint.name}")
    processor_json = tower_checkpoint.read_json("preprocessor_config.json") or {}
    aspect = _one_of(
        config.get("image_aspect_ratio") or "square", ("square", "pad", "anyres"),
        f"image_aspect_ratio in {where}",
    )  # fmt: skip
    merge = _one_of(
        config.get("mm_patch_merge_type", "flat"), ("flat", "spatial", "spatial_unpad"),
        f"mm_patch_merge_type in {where}",
    )  # fmt: skip
    feature = _one_of(
        config.get("mm_vision_select_feature", "patch"), ("patch", "cls_patch"),
        f"mm_vision_select_feature in {where}",
    )  # fmt: skip
    settings = LlavaSettings(
        select_layer=_integer(config, "mm_vision_select_layer", where, default=-2),
        keep_class_token=feature == "cls_patch",
        aspect=aspect,
        merge=merge,
        canvases=_canvases(config, clip, where) if aspect == "anyres" else (),
    )
    own_prefix = _tower_prefix(
        checkpoint,
        ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower."),
    )
    hidden_size = _integer(config, "hidden_size", where)
    projector = _projector(
        config.get("mm_projector_type", "linear"), clip.hidden_size, hidden_size, where
    )
    return VisionParts(
        clip=clip,
        processor=ClipProcessor.from_json(
            processor_json, clip.image_size, f"the image processor of {tower_checkpoint.name}"
        ),
        settings=settings,
        tower_checkpoint=tower_checkpoint if own_prefix is None else checkpoint,
        tower_prefix=_require(_tower_prefix(tower_checkpoint, ("vision_model.", "")), checkpoint)
        if own_prefix is None
        else own_prefix,
        projector=projector,
        projector_sources=_sources(checkpoint, projector, {"model.mm_projector.": ""}),
        newline_name="model.image_newline",
        hidden_size=hidden_size,
    )


def _read_hf(checkpoint: Checkpoint) -> VisionParts:
    config = checkpoint.config
    where = f"config.json of {checkpoint.name}"
    is_next = "LlavaNextForConditionalGeneration" in config["architectures"]
    clip = ClipConfig.from_json(config.get("vision_config") or _HF_DEFAULT_TOWER, where)
    processor_json = checkpoint.read_json("preprocessor_config.json")
    if processor_json is None:
        processor_json = (checkpoint.read_json("processor_config.json") or {}).get(
            "image_processor", {}
        )
    pads = processor_json.get("image_processor_type", "").startswith("LlavaImageProcessor")
    aspect = "pad" if pads and processor_json.get("do_pad") else "square"
    strategy = _one_of(
        config.get("vision_feature_select_strategy", "default"), ("default", "full"),
        f"vision_feature_select_strategy in {where}",
    )  # fmt: skip
    activation = config.get("projector_hidden_act", "gelu")
    _one_of(activation, ("gelu",), f"projector_hidden_act in {where}")
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ConfigError(f"{where}: one vision_feature_layer is supported, not {layer!r}")
    settings = LlavaSettings(
        select_layer=layer,
        keep_class_token=strategy == "full",
        aspect="anyres" if is_next else aspect,
        merge="spatial_unpad" if is_next else "flat",
        canvases=_canvases(config, clip, where, height_first=True) if is_next else (),
        rounds_unpad=True,
    )
    root = "model." if checkpoint.has_tensors("model.multi_modal_projector.") else ""
    prefixes = (f"{root}vision_tower.vision_model.", f"{root}vision_tower.")
    hidden_size = _integer(config.get("text_config") or {}, "hidden_size", where, default=4096)
    projector = _projector(
        "mlp2x_gelu",
        clip.hidden_size,
        hidden_size,
        where,
        bias=config.get("multimodal_projector_bias", True),
    )
    linear = f"{root}multi_modal_projector.linear_"
    newline_name = f"{root}image_newline"
    return VisionParts(
        clip=clip,
        processor=ClipProcessor.from_json(
            processor_json, clip.image_size, f"the image processor of {checkpoint.name}"
        ),
        settings=settings,
        tower_checkpoint=checkpoint,
        tower_prefix=_require(_tower_prefix(checkpoint, prefixes), checkpoint),
        projector=projector,
        projector_sources=_sources(
            checkpoint, projector, {f"{linear}1.": "0.", f"{linear}2.": "2."}
        ),
        newline_name=newline_name if config.get("use_image_newline_parameter", True) else None,
        hidden_size=hidden_size,
    )


def _tower_prefix(checkpoint: Checkpoint, prefixes: Sequence[str]) -> str | None:
    """The prefix of the tower's names; transformers 5 drops a level that releases have."""
    for prefix in prefixes:
        if checkpoint.has_tensors(f"{prefix}embeddings.class_embedding"):
            return prefix
    return None


def _require(prefix: str | None, checkpoint: Checkpoint) -> str:
    if prefix is None:
        raise TensorError(
            f"neither {checkpoint.name} nor the tower that it names holds CLIP vision weights "
            "(…embeddings.class_embedding)"
        )
    return prefix


def _sources(
    checkpoint: Checkpoint, module: nn.Module, prefixes: Mapping[str, str]
) -> dict[str, TensorSource]:
    """What a module asks for, under the checkpoint's names, and what the checkpoint has."""
    expected = {
        key: TensorSource(old + key.removeprefix(new))
        for key in module.state_dict()
        for old, new in prefixes.items()
        if key.startswith(new)
    }
    return expected | renamed(checkpoint, prefixes)


def tower_sources(parts: VisionParts, tower: nn.Module, num_layers: int) -> dict[str, TensorSource]:
    """The tensors of the tower up to the selected layer."""
    sources = _sources(parts.tower_checkpoint, tower, {parts.tower_prefix: ""})
    if not parts.tower_prefix:  # a whole file of somebody else's: take what is a tower's
        sources = {key: value for key, value in sources.items() if _TOWER_KEYS.match(key)}
    unused = range(num_layers, parts.clip.num_hidden_layers)
    skipped = (
        "embeddings.position_ids",
        "post_layernorm.",
        *(f"encoder.layers.{layer}." for layer in unused),
    )
    return {key: source for key, source in sources.items() if not key.startswith(skipped)}


def _projector(
    kind: str, width: int, hidden_size: int, where: str, *, bias: bool = True
) -> nn.Module:
    """Build a projector on the meta device, with the release's key names."""
    if kind == "identity" and width != hidden_size:
        raise ConfigError(
            f"{where}: an identity projector needs a tower as wide as the language model; they "
            f"are {width} and {hidden_size} wide"
        )
    with empty_weights():
        if kind == "identity":
            return nn.Identity()
        if kind == "linear":
            return nn.Linear(width, hidden_size)
        depth = int(kind.removeprefix("mlp").removesuffix("x_gelu"))
        layers: list[nn.Module] = [nn.Linear(width, hidden_size, bias=bias)]
        for _ in range(1, depth):
            layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size, bias=bias)]
        return nn.Sequential(*layers)


def _canvases(
    config: Mapping[str, Any], clip: ClipConfig, where: str, *, height_first: bool = False
) -> tuple[Size, ...]:
    pinpoints = config.get("image_grid_pinpoints", _DEFAULT_PINPOINTS)
    canvases = images.read_pinpoints(pinpoints, where, height_first=height_first)
    for canvas in canvases:
        if canvas[0] % clip.image_size or canvas[1] % clip.image_size:
            raise ConfigError(
                f"{where}: grid pinpoint {canvas} is no multiple of the tower's "
                f"{clip.image_size} pixels"
            )
    return canvases


def _one_of(value: str, known: Sequence[str], where: str) -> str:
    if value not in known:
        raise ConfigError(f"{where} is {value!r}; known: {', '.join(known)}")
    return value


def _integer(config: Mapping[str, Any], key: str, where: str, *, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{where}: {key} must be an integer; it is {value!r}")
    return value
