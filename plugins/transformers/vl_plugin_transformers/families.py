"""The families that the plugin serves, and how each differs from the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """A model type of transformers."""

    architecture: str
    """The class in transformers, and the name in ``architectures`` of ``config.json``."""
    requires: frozenset[str] = frozenset()
    """Features of the language model, as in ``LanguageModel.requires``."""
    alias: str = ""
    """Another name in ``architectures`` of released checkpoints."""
    packages: tuple[str, ...] = ()
    """Packages other than Pillow that the processor or the vision encoder needs."""
    row_token: str = ""
    """The token whose positions image embeddings take; by default, that of the configuration."""
    text: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the language model's standard architecture that differ from ``text_config``."""
    needs_class: bool = False
    """Whether only the multimodal class computes the logits, or merges the experts."""
    unused: tuple[str, ...] = ()
    """Modules next to the vision encoder that do not encode images."""
    batches: bool = True
    """Whether images of different sizes can share a forward pass, padded with zeros."""
    has_fixed_rows: bool = False
    """Whether the number of embeddings of an image follows from the vision encoder alone, and the
    processor does not know it."""
    tiles_single: bool = False
    """Whether an image is divided into tiles only where it is the only one of a prompt."""
    video: str = ""
    """The video processor of transformers, where the family takes videos here."""
    template: str = ""
    """The Jinja chat template of checkpoints that have none."""


_TORCHVISION = ("torchvision",)
_GRIDS = frozenset({"mrope"})
_GROUPS = frozenset({"attention_groups"})
_GRIDS_AND_LAYERS = frozenset({"mrope", "deepstack"})
_INTERNVL_VIDEO = "InternVLVideoProcessor"
_QWEN2_VIDEO = "Qwen2VLVideoProcessor"
_QWEN3_VIDEO = "Qwen3VLVideoProcessor"
_GOT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{{ '<img><imgpad></img>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""What the processor of GOT-OCR writes, whose checkpoints have no chat template."""

FAMILIES: dict[str, Family] = {
    "aria": Family("AriaForConditionalGeneration"),
    "aya_vision": Family(
        "AyaVisionForConditionalGeneration",
        row_token="<|IMG_PATCH|>",  # noqa: S106  (no password)
        text={"logit_scale": 1.0},
    ),
    "cohere2_vision": Family(
        "Cohere2VisionForConditionalGeneration", packages=_TORCHVISION, text={"logit_scale": 1.0}
    ),
    "cohere_compass": Family("CohereCompassForConditionalGeneration", _GRIDS_AND_LAYERS),
    "cosmos3_edge": Family("Cosmos3EdgeForConditionalGeneration", _GRIDS),
    "cosmos3_omni": Family("Cosmos3OmniForConditionalGeneration", _GRIDS_AND_LAYERS),
    "deepseek_vl": Family("DeepseekVLForConditionalGeneration"),
    "deepseek_vl_hybrid": Family("DeepseekVLHybridForConditionalGeneration"),
    "exaone4_5": Family("Exaone4_5_ForConditionalGeneration"),
    "fast_vlm": Family("FastVlmForConditionalGeneration", packages=("timm",)),
    "gemma3": Family("Gemma3ForConditionalGeneration", _GROUPS),
    "gemma4_unified": Family(
        "Gemma4UnifiedForConditionalGeneration", _GROUPS, packages=_TORCHVISION
    ),
    "glm46v": Family("Glm46VForConditionalGeneration", _GRIDS),
    "glm4v": Family("Glm4vForConditionalGeneration", _GRIDS),
    "glm4v_moe": Family("Glm4vMoeForConditionalGeneration", _GRIDS, needs_class=True),
    "glm_ocr": Family("GlmOcrForConditionalGeneration", _GRIDS),
    "glmga": Family("Glm46VForConditionalGeneration", _GRIDS),
    "got_ocr2": Family(
        "GotOcr2ForConditionalGeneration", has_fixed_rows=True, template=_GOT_TEMPLATE
    ),
    "hyperclovax_vision_v2": Family("HyperCLOVAXVisionV2ForConditionalGeneration"),
    "idefics3": Family("Idefics3ForConditionalGeneration"),
    "internvl": Family("InternVLForConditionalGeneration", video=_INTERNVL_VIDEO),
    "janus": Family(
        "JanusForConditionalGeneration",
        unused=("generation_aligner", "generation_embeddings", "generation_head", "vqmodel"),
    ),
    "kimi_k25": Family(
        "Kimi_K25ForConditionalGeneration",
        alias="KimiK25ForConditionalGeneration",
        packages=_TORCHVISION,
    ),
    "lfm2_vl": Family("Lfm2VlForConditionalGeneration", packages=_TORCHVISION),
    "lfm3_vl": Family("Lfm3VlForConditionalGeneration"),
    "lighton_ocr": Family("LightOnOcrForConditionalGeneration"),
    "llava": Family("LlavaForConditionalGeneration"),
    "llava_next": Family("LlavaNextForConditionalGeneration"),
    "llava_next_video": Family("LlavaNextVideoForConditionalGeneration"),
    "llava_onevision": Family("LlavaOnevisionForConditionalGeneration", tiles_single=True),
    "minimax_m3_vl": Family(
        "MiniMaxM3SparseForConditionalGeneration", packages=_TORCHVISION, needs_class=True
    ),
    "mistral3": Family("Mistral3ForConditionalGeneration", packages=_TORCHVISION),
    "muse_glimmer": Family(
        "MuseGlimmerForConditionalGeneration", packages=_TORCHVISION, needs_class=True
    ),
    "muse_spark": Family(
        "MuseSparkForConditionalGeneration",
        packages=_TORCHVISION,
        needs_class=True,
        unused=("audio_tower",),
    ),
    "ovis2": Family("Ovis2ForConditionalGeneration"),
    "paddleocr_vl": Family("PaddleOCRVLForConditionalGeneration", _GRIDS),
    "pp_chart2table": Family("GotOcr2ForConditionalGeneration", has_fixed_rows=True),
    "qianfan_ocr": Family("QianfanOCRForConditionalGeneration"),
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration", _GRIDS, video=_QWEN2_VIDEO),
    "qwen2_vl": Family("Qwen2VLForConditionalGeneration", _GRIDS, video=_QWEN2_VIDEO),
    "qwen3_5": Family("Qwen3_5ForConditionalGeneration", _GRIDS, video=_QWEN3_VIDEO),
    "qwen3_5_moe": Family("Qwen3_5MoeForConditionalGeneration", _GRIDS, video=_QWEN3_VIDEO),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", _GRIDS_AND_LAYERS, video=_QWEN3_VIDEO),
    "qwen3_vl_moe": Family(
        "Qwen3VLMoeForConditionalGeneration", _GRIDS_AND_LAYERS, video=_QWEN3_VIDEO
    ),
    "smolvlm": Family("SmolVLMForConditionalGeneration", packages=("num2words",)),
    "step3p7": Family("Step3p7ForConditionalGeneration", packages=_TORCHVISION, batches=False),
    "video_llama_3": Family("VideoLlama3ForConditionalGeneration"),
    "video_llava": Family("VideoLlavaForConditionalGeneration", unused=("video_tower",)),
    "vipllava": Family("VipLlavaForConditionalGeneration"),
}
"""The families by their ``model_type``."""


def reason_against(config: Mapping[str, Any]) -> str | None:
    """Return why the plugin does not serve a checkpoint, or ``None`` if it does."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        return f"its model_type is {model_type!r}, which is not among the {len(FAMILIES)} known"
    if architectures not in ([family.architecture], [family.alias]):
        return (
            f"its architectures are {architectures!r}; transformers has {family.architecture} for "
            f"the model_type {model_type!r}"
        )
    return None
