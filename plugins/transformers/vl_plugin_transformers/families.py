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
    packages: tuple[str, ...] = ()
    """Packages other than Pillow that the processor or the vision encoder needs."""
    row_token: str = ""
    """The token whose positions image embeddings take; by default, that of the configuration."""
    text: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the language model's standard architecture that differ from ``text_config``."""
    unused: tuple[str, ...] = ()
    """Modules next to the vision encoder that do not encode images."""
    batches: bool = True
    """Whether images of different sizes can share a forward pass, padded with zeros."""
    reads_ids: bool = False
    """Whether the expansion of an image is read from the ids of a prompt, because the processor
    has no method that returns it."""


_TORCHVISION = ("torchvision",)

FAMILIES: dict[str, Family] = {
    "aria": Family("AriaForConditionalGeneration"),
    "aya_vision": Family(
        "AyaVisionForConditionalGeneration",
        row_token="<|IMG_PATCH|>",  # noqa: S106  (no password)
        text={"logit_scale": 1.0},
    ),
    "deepseek_vl": Family("DeepseekVLForConditionalGeneration"),
    "deepseek_vl_hybrid": Family("DeepseekVLHybridForConditionalGeneration"),
    "exaone4_5": Family("Exaone4_5_ForConditionalGeneration"),
    "hyperclovax_vision_v2": Family("HyperCLOVAXVisionV2ForConditionalGeneration"),
    "idefics3": Family("Idefics3ForConditionalGeneration"),
    "internvl": Family("InternVLForConditionalGeneration"),
    "janus": Family(
        "JanusForConditionalGeneration",
        unused=("generation_aligner", "generation_embeddings", "generation_head", "vqmodel"),
    ),
    "lighton_ocr": Family("LightOnOcrForConditionalGeneration"),
    "llava": Family("LlavaForConditionalGeneration"),
    "llava_next": Family("LlavaNextForConditionalGeneration"),
    "llava_next_video": Family("LlavaNextVideoForConditionalGeneration"),
    "llava_onevision": Family("LlavaOnevisionForConditionalGeneration"),
    "mistral3": Family("Mistral3ForConditionalGeneration", packages=_TORCHVISION),
    "qianfan_ocr": Family("QianfanOCRForConditionalGeneration"),
    "smolvlm": Family("SmolVLMForConditionalGeneration", packages=("num2words",)),
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
    if architectures != [family.architecture]:
        return (
            f"its architectures are {architectures!r}; transformers has {family.architecture} for "
            f"the model_type {model_type!r}"
        )
    return None
