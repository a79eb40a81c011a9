"""LLaVA's vision model: CLIP tower, projector, and rows laid out as tiles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from PIL import Image
from torch import Tensor, nn

from vl_plugin_llava import images
from vl_plugin_llava.clip import ClipConfig, ClipTower
from vl_plugin_llava.images import ClipProcessor, Size
from vlcore import (
    Checkpoint,
    ConfigError,
    ImageInputs,
    TensorError,
    TensorSource,
    VisionModel,
    renamed,
)

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


@dataclass(frozen=True)
class TileLayout:
    """Where an image's tiles stand."""

    image_size: Size
    grid: Size
    """Columns and rows of tiles beside the base view; (0, 0) where there is only the base."""


class LlavaVisionModel(VisionModel):
    """CLIP features of an image, projected, in the release's order of rows.

    Source: the released LLaVA code (``llava_arch.py``, ``mm_utils.py``) and, for llava-hf
    checkpoints, transformers' ``LlavaNext``.
    """

    def __init__(
        self,
        tower: ClipTower,
        projector: nn.Module,
        newline: Tensor | None,
        settings: LlavaSettings,
        config: ClipConfig,
        processor: ClipProcessor,
        hidden_size: int,
    ) -> None:
        self.hidden_size = hidden_size
        self._tower = tower
        self._projector = projector
        self._newline = newline
        self._settings = settings
        self._grid_size = config.grid_size
        self._edge = config.image_size
        self._processor = processor

    def preprocess(self, image: Image.Image, **options: Any) -> ImageInputs:
        """Turn a picture into normalised tiles, the base view first.

        Shapes:
            pixels: [tiles, 3, S, S] float32.
        """
        image = super().preprocess(image, **options)
        image = image if image.mode == "RGB" else image.convert("RGB")
        views, grid = [image], (0, 0)
        if self._settings.aspect == "pad":
            views = [images.pad_to_square(image, self._processor.background)]
        elif self._settings.aspect == "anyres":
            resample = self._processor.resample
            canvas = images.best_canvas(image.size, self._settings.canvases)
            base = image.resize((self._processor.edge, self._processor.edge), resample)
            fitted = images.fit_on_canvas(image, canvas, resample)
            views = [base, *images.cut_tiles(fitted, self._edge)]
            grid = (canvas[0] // self._edge, canvas[1] // self._edge)
        layout = TileLayout(image.size, grid)
        pixels = torch.stack([self._processor(view) for view in views])
        return ImageInputs(pixels, layout, self._num_rows(layout))

    def tower(self, pixels: Tensor) -> Tensor:
        """Encode and project tiles.

        Shapes:
            pixels: [N, 3, S, S]; result: [N, T, hidden_size].
        """
        features = self._tower(pixels)
        projected: Tensor = self._projector(
            features if self._settings.keep_class_token else features[:, 1:]
        )
        return projected

    def assemble(self, features: Tensor, inputs: ImageInputs) -> Tensor:
        """Lay out the tiles' rows: base view, then the grid with its newline rows.

        Shapes:
            features: [tiles, T, hidden_size]; result: [k, hidden_size].
        """
        layout: TileLayout = inputs.layout
        settings = self._settings
        if settings.aspect != "anyres" or settings.merge == "flat":
            return features.flatten(0, 1)
        base = features[0]
        columns, rows = layout.grid
        side = self._grid_size
        # [tiles, T, D] -> [D, rows * side, columns * side]
        grid = features[1:].reshape(rows, columns, side, side, -1).permute(4, 0, 2, 1, 3)
        grid = grid.flatten(3, 4).flatten(1, 2)
        if settings.merge == "spatial_unpad":
            top, left = self._padding(layout)
            grid = grid[:, top : grid.shape[1] - top, left : grid.shape[2] - left]
            if self._newline is not None:
                newline = self._newline[:, None, None].expand(-1, grid.shape[1], 1)
                grid = torch.cat([grid, newline.to(grid)], dim=2)
        return torch.cat([base, grid.flatten(1).T])

    def _padding(self, layout: TileLayout) -> tuple[int, int]:
        """Rows and columns of features that hold nothing but canvas, on either side."""
        width, height = layout.image_size
        columns, rows = (tiles * self._grid_size for tiles in layout.grid)
        if width / height > columns / rows:
            return (rows - self._whole(height * (columns / width))) // 2, 0
        return 0, (columns - self._whole(width * (rows / height))) // 2

    def _whole(self, length: float) -> int:
        return int(round(length, 7) if self._settings.rounds_unpad else length)

    def _num_rows(self, layout: TileLayout) -> int:
        settings = self._settings
        per_tile = self._grid_size**2 + settings.keep_class_token
        columns, rows = layout.grid
        if settings.merge != "spatial_unpad" or settings.aspect != "anyres":
            return per_tile * (1 + columns * rows)
        top, left = self._padding(layout)
        height = rows * self._grid_size - 2 * top
        width = columns * self._grid_size - 2 * left
        return per_tile + height * (width + (self._newline is not None))


def load_vision_model(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> LlavaVisionModel:
    """Load the vision model of a checkpoint in the original or in llava-hf's layout."""
    parts = _read_hf(checkpoint) if is_hf(checkpoint.config) else _read_original(checkpoint)
    clip, settings = parts.clip, parts.settings
    num_layers = settings.select_layer
    if num_layers < 0:
        num_layers += clip.num_hidden_layers + 1
    if not 0 <= num_layers <= clip.num_hidden_layers:
        raise ConfigError(
            f"{checkpoint.name}: hidden state {settings.select_layer} of the tower is asked for, "
            f"which has {clip.num_hidden_layers} layers"
        )
    if settings.aspect == "anyres" and settings.merge != "flat" and settings.keep_class_token:
        raise ConfigError(f"{checkpoint.name}: tiles with a class token cannot be laid out")
    with init_empty_weights(include_buffers=False):
        tower = ClipTower(clip, num_layers)
    sources = _tower_sources(parts, num_layers)
    parts.tower_checkpoint.load_module(tower, sources, device=device, dtype=dtype)
    checkpoint.load_module(parts.projector, parts.projector_sources, device=device, dtype=dtype)
    newline = None
    if settings.aspect == "anyres" and settings.merge == "spatial_unpad" and parts.newline_name:
        newline = next(checkpoint.tensors([parts.newline_name], device=device, dtype=dtype))[1]
    return LlavaVisionModel(
        tower.eval(), parts.projector.eval(), newline, settings, clip, parts.processor,
        parts.hidden_size,
    )  # fmt: skip


def is_hf(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is in llava-hf's layout rather than the original one."""
    return "vision_config" in config or "text_config" in config


@dataclass(frozen=True)
class _Parts:
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


def _read_original(checkpoint: Checkpoint) -> _Parts:
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
        select_layer=config.get("mm_vision_select_layer", -2),
        keep_class_token=feature == "cls_patch",
        aspect=aspect,
        merge=merge,
        canvases=_canvases(config, clip, where) if aspect == "anyres" else (),
    )
    own_prefix = _tower_prefix(
        checkpoint,
        ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower."),
    )
    projector_prefix = "model.mm_projector."
    return _Parts(
        clip=clip,
        processor=ClipProcessor.from_json(
            processor_json, clip.image_size, f"the image processor of {tower_checkpoint.name}"
        ),
        settings=settings,
        tower_checkpoint=tower_checkpoint if own_prefix is None else checkpoint,
        tower_prefix=_require(_tower_prefix(tower_checkpoint, ("vision_model.", "")), checkpoint)
        if own_prefix is None
        else own_prefix,
        projector=_projector(
            config.get("mm_projector_type", "linear"), clip.hidden_size, config["hidden_size"]
        ),
        projector_sources=renamed(checkpoint, {projector_prefix: ""}),
        newline_name="model.image_newline",
        hidden_size=config["hidden_size"],
    )


def _read_hf(checkpoint: Checkpoint) -> _Parts:
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
    projector_prefix = f"{root}multi_modal_projector.linear_"
    hidden_size = (config.get("text_config") or {}).get("hidden_size", 4096)
    newline_name = f"{root}image_newline"
    return _Parts(
        clip=clip,
        processor=ClipProcessor.from_json(
            processor_json, clip.image_size, f"the image processor of {checkpoint.name}"
        ),
        settings=settings,
        tower_checkpoint=checkpoint,
        tower_prefix=_require(_tower_prefix(checkpoint, prefixes), checkpoint),
        projector=_projector(
            "mlp2x_gelu",
            clip.hidden_size,
            hidden_size,
            bias=config.get("multimodal_projector_bias", True),
        ),
        projector_sources=renamed(
            checkpoint, {f"{projector_prefix}1.": "0.", f"{projector_prefix}2.": "2."}
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


def _tower_sources(parts: _Parts, num_layers: int) -> dict[str, TensorSource]:
    """The tensors of the tower up to the selected layer."""
    sources = renamed(parts.tower_checkpoint, {parts.tower_prefix: ""})
    if not parts.tower_prefix:  # a whole file of somebody else's: take what is a tower's
        sources = {key: value for key, value in sources.items() if _TOWER_KEYS.match(key)}
    unused = range(num_layers, parts.clip.num_hidden_layers)
    skipped = (
        "embeddings.position_ids",
        "post_layernorm.",
        *(f"encoder.layers.{layer}." for layer in unused),
    )
    return {key: source for key, source in sources.items() if not key.startswith(skipped)}


def _projector(kind: str, width: int, hidden_size: int, *, bias: bool = True) -> nn.Module:
    """Build a projector on the meta device, with the release's key names."""
    with init_empty_weights(include_buffers=False):
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
