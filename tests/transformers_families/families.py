"""What makes a tiny checkpoint of each family: settings that differ from the family's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]


@dataclass(frozen=True)
class TinyFamily:
    """The settings of one family's tiny checkpoint."""

    images: Values = field(default_factory=dict)
    """Arguments of the image processor."""
    processor: Values = field(default_factory=dict)
    """Arguments of the processor."""
    tokens: Values = field(default_factory=dict)
    """Named special tokens of the tokenizer, such as ``image_token``."""
    config: Values = field(default_factory=dict)
    """Changes of the tiny configuration."""
    arguments: Values = field(default_factory=dict)
    """Arguments of the configuration's class, which its other values depend on."""
    token_ids: Mapping[str, str | list[str]] = field(default_factory=dict)
    """Tokens whose ids the configuration has."""
    placeholder: str = ""
    """What the chat template writes for an image, where it is not the processor's image token."""
    row_token: str = ""
    """The token of an image embedding, where it is not the tokenizer's ``image_token``."""
    processor_class: str = ""
    image_class: str = ""
    call_options: Values = field(default_factory=dict)
    """Arguments that a call of the processor needs."""
    takes_flat_images: bool = False
    """Whether the processor takes no list of images for each prompt."""
    has_bos: bool = False
    """Whether the tokenizer writes ``<s>`` before a text."""
    writes_bos: bool = False
    """Whether the chat template begins with ``<s>``."""
    videos: Values = field(default_factory=dict)
    """Settings of the video processor, where the plugin takes videos of the family."""
    video_placeholder: str = ""
    """What the chat template writes for a video."""
    requires: tuple[str, ...] = ()
    """Packages that the processor or the model imports."""
    scale: float = 0.25
    """Standard deviation of the weights."""
    seed: int = 0
    """Seed of the weights to begin with."""


TILE = {"height": 56, "width": 56}
_CLIP = {"size": {"shortest_edge": 56}, "crop_size": TILE}
_PINPOINTS = {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]}
_LLAVA = {
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
_IMAGE = {"image_token": "<image>"}
_IMAGE_VIDEO = {"image_token": "<image>", "video_token": "<video>"}


def _packed(patch: int, **more: Any) -> dict[str, Any]:
    """Return an image processor's settings for 4 to 25 embeddings of 2 x 2 patches."""
    side = 2 * patch
    size = {"shortest_edge": (2 * side) ** 2, "longest_edge": (5 * side) ** 2}
    return {"patch_size": patch, "merge_size": 2, "size": size} | more


_QWEN = _packed(14, temporal_patch_size=2)
_QWEN_16 = _packed(16, temporal_patch_size=2)
_QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_QWEN_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_VIDEO: dict[str, Any] = {"video_placeholder": "<|vision_start|><|video_pad|><|vision_end|>"}
_GLM_TOKENS = {"image_token": "<|image|>", "video_token": "<|video|>"}
_GLM_PLACEHOLDER = "<|begin_of_image|><|image|><|end_of_image|>"
_ERNIE_PLACEHOLDER = "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
    return {"rope_parameters": parameters | more}


def _qwen(images: Values = _QWEN, **more: Any) -> TinyFamily:
    return TinyFamily(images, tokens=_QWEN_TOKENS, placeholder=_QWEN_PLACEHOLDER, **more)


def _glm(rope: Values | None = None, images: Values = _QWEN, **more: Any) -> TinyFamily:
    config = {"text_config": rope or _rope(2, 3, 3), "vision_config": {"out_hidden_size": 64}}
    return TinyFamily(
        images, tokens=_GLM_TOKENS, placeholder=_GLM_PLACEHOLDER, config=config, **more
    )


_QWEN3_VIDEOS = {"size": {"shortest_edge": 4 * 64**2, "longest_edge": 12 * 64**2}}
_QWEN3_TEXT = {"num_hidden_layers": 4} | _rope(2, 3, 3)
_QWEN3_VISION = {"patch_size": 16, "depth": 3, "deepstack_visual_indexes": [0, 1]}
_QWEN3 = {"vision_config": _QWEN3_VISION, "text_config": _QWEN3_TEXT}
_QWEN3_5 = {
    "vision_config": {"patch_size": 16},
    "text_config": {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
}
_TILES = {"size": TILE, "crop_to_patches": True, "min_patches": 1, "max_patches": 4}
_INTERNVL = {"vision_config": {"image_size": [56, 56], "patch_size": [14, 14]}}
_INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
}
_SAM = {
    "image_size": 256,
    "patch_size": 16,
    "hidden_size": 32,
    "output_channels": 16,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_GOT = {"vision_config": _SAM}
_GEMMA_TOKENS = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}
_GEMMA3 = {
    "mm_tokens_per_image": 4,
    "text_config": {"layer_types": ["sliding_attention", "full_attention"]},
}
_GEMMA4_TOKENS = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "video_token": "<|video|>",
}
_GEMMA4_TEXT = {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size": 64,
    "head_dim": 16,
    "global_head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 640,
    "vocab_size_per_layer_input": 640,
    "hidden_size_per_layer_input": 16,
    "sliding_window": 32,
    "use_bidirectional_attention": "vision",
}
_GEMMA4_IMAGES = {"patch_size": 16, "max_soft_tokens": 70, "pooling_kernel_size": 3}
_IDEFICS3: dict[str, Any] = {
    "images": {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
    "processor": {"image_seq_len": 4},
    "config": {"vision_config": {"image_size": 56, "patch_size": 14}, "scale_factor": 2},
}
_PIXTRAL = {"size": {"longest_edge": 112}, "patch_size": {"height": 14, "width": 14}}
_MISTRAL = {"patch_size": 14, "spatial_merge_size": 2}
_MUSE = {"patch_size": 14, "merge_size": 2, "max_image_tokens": 16}
_MUSE_SIZES = {"out_hidden_size": 128, "projector_hidden_size": 64}
_TORCHVISION = ("torchvision",)

FAMILIES: dict[str, TinyFamily] = {
    "aria": TinyFamily(
        {"max_image_size": 490},
        {"size_conversion": {490: 8, 980: 8}},
        {"image_token": "<|img|>"},
        {
            "projector_patch_to_query_dict": {"1225": 8, "4900": 8},
            "vision_config": {"image_size": 490, "patch_size": 14},
        },
    ),
    "aya_vision": TinyFamily(
        _TILES,
        {"patch_size": 14, "img_size": 56, "downsample_factor": 2},
        row_token="<|IMG_PATCH|>",
    ),
    "cohere2_vision": TinyFamily(
        {"size": TILE, "min_patches": 1, "max_patches": 4, "patch_size": 2},
        tokens={
            "image_token": "<|IMG_PATCH|>",
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
        config={"vision_config": {"image_size": 56, "patch_size": 14}},
        requires=_TORCHVISION,
    ),
    "cohere_compass": TinyFamily(
        _QWEN,
        tokens={name: token.upper() for name, token in _QWEN_TOKENS.items()},
        placeholder=_QWEN_PLACEHOLDER.upper(),
        config={
            "vision_config": {"depth": 3, "deepstack_visual_indexes": [0, 1]},
            "text_config": {
                "rope_parameters": {
                    kind: _rope(2, 3, 3)["rope_parameters"]
                    for kind in ("full_attention", "sliding_attention")
                }
            },
        },
    ),
    "cosmos3_edge": _qwen(
        _packed(16),
        config={"vision_config": {"patch_size": 16}, "text_config": _rope(2, 3, 3)},
        call_options={"return_mm_token_type_ids": True},
    ),
    "cosmos3_omni": _qwen(_QWEN_16, config=_QWEN3, processor_class="Qwen3VLProcessor"),
    "deepseek_vl": TinyFamily(
        {"size": TILE},
        {"num_image_tokens": 16},
        {"image_token": "<image_placeholder>"},
        {"vision_config": {"image_size": 56}},
    ),
    "deepseek_vl_hybrid": TinyFamily(
        {"size": TILE, "high_res_size": {"height": 224, "width": 224}},
        {"num_image_tokens": 16},
        {"image_token": "<image_placeholder>"},
        {
            "vision_config": {"image_size": 56, "patch_size": 14},
            "high_res_vision_config": {
                "image_size": 224,
                "patch_size": 14,
                "window_size": 4,
                "output_channels": 16,
                "hidden_size": 32,
                "global_attn_indexes": [1],
                "num_hidden_layers": 2,
            },
        },
    ),
    "exaone4_5": _qwen(
        config={
            "vision_config": {"out_hidden_size": 64, "fullatt_block_indexes": [1]},
            "text_config": {"layer_types": ["sliding_attention", "full_attention"]},
        }
    ),
    "fast_vlm": TinyFamily(
        {"size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128}},
        {
            "patch_size": 64,
            "vision_feature_select_strategy": "full",
            "num_additional_image_tokens": 0,
        },
        _IMAGE,
        {
            "vision_config": {
                "architecture": "fastvit_mci3",
                "hidden_size": 128,
                "model_args": {
                    "inference_mode": True,
                    "layers": [1] * 5,
                    "embed_dims": [16, 32, 64, 64, 64],
                },
            }
        },
        processor_class="LlavaProcessor",
        image_class="CLIPImageProcessor",
        requires=("timm",),
    ),
    "gemma3": TinyFamily(
        {"size": TILE},
        {"image_seq_length": 4},
        _GEMMA_TOKENS,
        _GEMMA3,
        placeholder="<start_of_image>",
        has_bos=True,
        writes_bos=True,
        seed=7,
    ),
    "gemma4_unified": TinyFamily(
        _GEMMA4_IMAGES,
        tokens=_GEMMA4_TOKENS,
        arguments={"text_config": _GEMMA4_TEXT},
        config={"vision_config": {"patch_size": 16, "pooling_kernel_size": 3}},
        requires=_TORCHVISION,
    ),
    "glm46v": _glm(),
    "glm4v": _glm(),
    "glm4v_moe": _glm(
        _rope(2, 1, 1, partial_rotary_factor=0.5),
        image_class="Glm4vImageProcessor",
        processor_class="Glm4vProcessor",
    ),
    "glm_ocr": _glm(image_class="Glm46VImageProcessor", processor_class="Glm46VProcessor"),
    "glmga": _glm(processor_class="Glm46VProcessor"),
    "got_ocr2": TinyFamily(
        {"size": {"height": 256, "width": 256}},
        config=_GOT,
        placeholder="<imgpad>",
        call_options={"num_image_tokens": 16},
        takes_flat_images=True,
    ),
    "hyperclovax_vision_v2": _qwen(
        config={"vision_config": {"out_hidden_size": 64, "fullatt_block_indexes": [1]}}
    ),
    "idefics3": TinyFamily(**_IDEFICS3),
    "internvl": TinyFamily(
        _TILES,
        {"image_seq_length": 4},
        _INTERNVL_TOKENS | {"video_token": "<video>"},
        _INTERNVL | {"image_seq_length": 4},
        videos={"size": TILE},
        video_placeholder="<video>",
        seed=3,
    ),
    "janus": TinyFamily(
        {"size": TILE},
        {"num_image_tokens": 16},
        {
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
        {
            "vision_config": {
                "image_size": 56,
                "patch_size": 14,
                "projection_dim": 64,
                "num_image_tokens": 16,
            },
            "vq_config": {
                "base_channels": 32,
                "embed_dim": 8,
                "num_embeddings": 16,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "image_token_embed_dim": 16,
                "projection_dim": 16,
                "num_patches": 16,
            },
        },
    ),
    "kimi_k25": TinyFamily(
        {
            "patch_size": 14,
            "merge_size": 2,
            "max_patches": 64,
            "size": {"max_height": 8, "max_width": 8},
        },
        tokens={"image_token": "<|media_pad|>"},
        config={
            "projection_hidden_size": 32,
            "vision_config": {"pos_emb_height": 8, "pos_emb_width": 8},
            "text_config": {
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 16,
                "head_dim": 8,
                "qk_head_dim": 24,
                "num_key_value_heads": 4,
            },
        },
        requires=_TORCHVISION,
        seed=7,
    ),
    "lfm2_vl": TinyFamily(
        {
            "size": {"height": 64, "width": 64},
            "encoder_patch_size": 16,
            "tile_size": 64,
            "min_image_tokens": 4,
            "max_image_tokens": 16,
            "max_num_patches": 64,
            "min_tiles": 2,
            "max_tiles": 4,
        },
        tokens=_IMAGE,
        config={
            "vision_config": {"patch_size": 16, "num_patches": 64},
            "text_config": {
                "num_hidden_layers": 4,
                "layer_types": ["conv", "full_attention"] * 2,
            },
        },
        requires=_TORCHVISION,
        scale=0.15,
        seed=3,
    ),
    "lfm3_vl": _qwen(
        _QWEN_16,
        config={
            "vision_config": {"patch_size": 16},
            "text_config": {
                "num_hidden_layers": 4,
                "layer_types": ["conv", "full_attention", "conv", "sliding_attention"],
            },
        },
    ),
    "lighton_ocr": TinyFamily(
        _PIXTRAL,
        _MISTRAL,
        {
            "image_token": "<|image_pad|>",
            "image_break_token": "<|vision_pad|>",
            "image_end_token": "<|vision_end|>",
        },
        {"vision_config": {"image_size": 112}},
    ),
    "llava": TinyFamily(_CLIP, _LLAVA, _IMAGE, has_bos=True),
    "llava_next": TinyFamily(_CLIP | _PINPOINTS, _LLAVA, _IMAGE_VIDEO, _PINPOINTS, has_bos=True),
    "llava_next_video": TinyFamily(_CLIP | _PINPOINTS, _LLAVA, _IMAGE_VIDEO, _PINPOINTS),
    "llava_onevision": TinyFamily(
        {"size": TILE} | _PINPOINTS,
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        _IMAGE_VIDEO,
        _PINPOINTS,
    ),
    "minimax_m3_vl": TinyFamily(_QWEN, requires=_TORCHVISION),
    "mistral3": TinyFamily(
        _PIXTRAL, _MISTRAL, config={"vision_config": {"image_size": 112}}, requires=_TORCHVISION
    ),
    "muse_glimmer": TinyFamily(_MUSE, config=_MUSE_SIZES, requires=_TORCHVISION),
    "muse_spark": TinyFamily(
        _MUSE,
        config=_MUSE_SIZES
        | {
            "audio_config": {
                "num_hidden_layers": 4,
                "hidden_sizes": [16, 16, 32, 32],
                "patch_sizes": [16, 6, 5, 4],
                "depths": [1, 1, 1, 1],
            }
        },
        requires=_TORCHVISION,
    ),
    "ovis2": TinyFamily(
        {"size": TILE, "crop_to_patches": True, "max_patches": 4},
        {"image_seq_length": 4},
        config={
            "vision_config": {
                "image_size": 56,
                "patch_size": 14,
                "hidden_stride": 2,
                "vocab_size": 37,
                "num_visual_indicator_tokens": 5,
            },
        },
        token_ids={
            "visual_indicator_token_ids": [
                "<IMG_START>",
                "<IMG_END>",
                "<IMG_GRID>",
                "<IMG_COL>",
                "<IMG_ROW>",
            ]
        },
        row_token="<IMG_ATOM>",
    ),
    "paddleocr_vl": TinyFamily(
        _packed(14),
        tokens={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        placeholder=_ERNIE_PLACEHOLDER,
        config={"text_config": _rope(2, 3, 3)},
        seed=7,
    ),
    "pp_chart2table": TinyFamily(
        {"size": {"height": 256, "width": 256}},
        config=_GOT,
        placeholder="<imgpad>" * 16,
        row_token="<imgpad>",
    ),
    "qianfan_ocr": TinyFamily(
        _TILES,
        {"image_seq_length": 4},
        _INTERNVL_TOKENS,
        _INTERNVL | {"image_seq_length": 4},
        placeholder="<image>",
    ),
    "qwen2_5_vl": _qwen(
        config={
            "vision_config": {"out_hidden_size": 64, "fullatt_block_indexes": [1]},
            "text_config": _rope(2, 3, 3),
        },
        videos=_QWEN,
        **_QWEN_VIDEO,
    ),
    "qwen2_vl": _qwen(
        config={
            "vision_config": {"hidden_size": 64, "embed_dim": 32, "mlp_ratio": 2},
            "text_config": _rope(2, 3, 3),
        },
        videos=_QWEN,
        **_QWEN_VIDEO,
    ),
    "qwen3_5": _qwen(_QWEN_16, config=_QWEN3_5, seed=1, videos=_QWEN3_VIDEOS, **_QWEN_VIDEO),
    "qwen3_5_moe": _qwen(_QWEN_16, config=_QWEN3_5, videos=_QWEN3_VIDEOS, **_QWEN_VIDEO),
    "qwen3_vl": _qwen(_QWEN_16, config=_QWEN3, videos=_QWEN3_VIDEOS, **_QWEN_VIDEO),
    "qwen3_vl_moe": _qwen(
        _QWEN_16,
        config=_QWEN3,
        image_class="Qwen2VLImageProcessor",
        videos=_QWEN3_VIDEOS,
        **_QWEN_VIDEO,
    ),
    "smolvlm": TinyFamily(**_IDEFICS3, requires=("num2words",)),
    "step3p7": TinyFamily(
        {"size": {"height": 112, "width": 112}, "patch_size": 56, "max_image_size": 224},
        config={
            "vision_config": {"image_size": 112, "patch_size": 14},
            "text_config": {"sliding_window": 32},
        },
        row_token="<im_patch>",
        requires=_TORCHVISION,
    ),
    "video_llama_3": _qwen(
        {
            "patch_size": 14,
            "merge_size": 1,
            "size": {"shortest_edge": 784, "longest_edge": 4900},
        }
    ),
    "video_llava": TinyFamily(_CLIP, _LLAVA, _IMAGE_VIDEO),
    "vipllava": TinyFamily(
        _CLIP, _LLAVA, _IMAGE, {"vision_feature_layers": [-1, -2], "vision_feature_layer": [-1, -2]}
    ),
}
