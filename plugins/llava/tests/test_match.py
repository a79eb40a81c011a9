from __future__ import annotations

import json
from typing import Any

import pytest
from golden_cases import GOLDEN
from vl_plugin_llava import vl_match

from vlcore import CheckpointFiles, NoPluginError
from vlcore.plugins import find_plugin

ORIGINAL: dict[str, Any] = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}
HF: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "vision_config": {"model_type": "clip_vision_model"},
    "text_config": {"model_type": "llama"},
}


def match(config: dict[str, Any], files: CheckpointFiles | None = None) -> object:
    """Ask about a configuration alone, or about one in a checkpoint."""
    return vl_match(config, CheckpointFiles() if files is None else files)


def cases() -> list[str]:
    return sorted(path.parent.name for path in GOLDEN.glob("llava*/config.json"))


@pytest.mark.parametrize("case", cases())
def test_golden_checkpoints_match(case: str) -> None:
    config = json.loads((GOLDEN / case / "config.json").read_text())
    assert match(config) is True
    assert find_plugin(config).info.distribution == "vl-plugin-llava"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral"},
        {"mm_projector_type": "linear"},
        {"mm_projector_type": "identity"},
        {"mm_projector_type": "mlp3x_gelu"},
        {"mm_vision_tower": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"},
        {"mm_vision_tower": "maker/my-clip-vit"},
        {"mm_vision_tower": "./tower"},
        {"mm_vision_tower": "tower"},
        {"mm_vision_tower": "/models/vit-large"},
    ],
    ids=str,
)
def test_the_original_layout_matches(change: dict[str, Any]) -> None:
    assert match(ORIGINAL | change) is True


def test_releases_before_projector_types_are_linear() -> None:
    assert match({key: ORIGINAL[key] for key in ORIGINAL if key != "mm_projector_type"}) is True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {
                "mm_projector_type": "mlp2x_gelu_Norm",
                "mm_vision_tower": "./vit/clip-vit-H-14-laion2B-s32B-b79K-448",
            },
            "its projector 'mlp2x_gelu_Norm' is Yi-VL's; LLaVA's have no norms",
        ),
        (
            {"mm_vision_tower": "OpenGVLab/InternViT-6B-224px"},
            "its vision encoder 'OpenGVLab/InternViT-6B-224px' is not a CLIP model "
            "(it is OpenGVLab's)",
        ),
        (
            {"mm_vision_tower": "./InternViT-6B-224px"},
            "its vision encoder './InternViT-6B-224px' is not a CLIP model (it names InternViT)",
        ),
        (
            {"mm_vision_tower": "google/siglip-so400m-patch14-384"},
            "its vision encoder 'google/siglip-so400m-patch14-384' is not a CLIP model "
            "(it names siglip)",
        ),
        (
            {"mm_vision_tower": "maker/vit-large"},
            "its vision encoder 'maker/vit-large' is not known to be a CLIP model: its name "
            "does not say so, and the checkpoint has no folder of that name whose config.json has "
            "a model_type",
        ),
        ({"mm_vision_tower": None}, "config.json names no vision encoder in mm_vision_tower"),
        ({"mm_vision_tower": ""}, "config.json names no vision encoder in mm_vision_tower"),
        ({"mm_vision_tower": ["a"]}, "config.json names no vision encoder in mm_vision_tower"),
        (
            {"mm_projector_type": "resampler"},
            "its projector 'resampler' is none of linear, mlpNx_gelu, identity",
        ),
        (
            {"mm_projector_type": "mlp0x_gelu"},
            "its projector 'mlp0x_gelu' is none of linear, mlpNx_gelu, identity",
        ),
        (
            {"mm_projector_type": 3},
            "its projector 3 is none of linear, mlpNx_gelu, identity",
        ),
    ],
    ids=str,
)
def test_others_of_the_same_name_are_refused_with_the_reason(
    change: dict[str, Any], reason: str
) -> None:
    config = ORIGINAL | change
    assert match(config) == reason
    with pytest.raises(NoPluginError) as caught:
        find_plugin(config, plugin="vl-plugin-llava")
    assert reason in str(caught.value)


def test_a_text_model_under_the_same_name_is_refused() -> None:
    config = {"architectures": ["LlavaLlamaForCausalLM"], "hidden_size": 64, "vocab_size": 320}
    assert match(config) == "config.json names no vision encoder in mm_vision_tower"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"architectures": ["LlavaNextForConditionalGeneration"]},
        {"text_config": {"model_type": "mistral"}},
        {"text_config": {}, "vision_config": {}},
        {"text_config": None},
    ],
    ids=str,
)
def test_the_hf_layout_matches(change: dict[str, Any]) -> None:
    assert match(HF | change) is True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"vision_config": {"model_type": "siglip_vision_model"}},
            "its vision encoder is a 'siglip_vision_model'; known: clip_vision_model",
        ),
        (
            {"text_config": {"model_type": "qwen2"}},
            "its language model is a 'qwen2'; known: llama, mistral",
        ),
        (
            {"vision_config": "clip"},
            "vision_config of config.json must be an object, not str",
        ),
    ],
)
def test_other_parts_in_the_hf_layout_are_refused_with_the_reason(
    change: dict[str, Any], reason: str
) -> None:
    assert match(HF | change) == reason


@pytest.mark.parametrize("architectures", [["SomeForConditionalGeneration"], None])
def test_another_architecture_with_the_same_parts_is_refused(architectures: Any) -> None:
    reason = match(HF | {"architectures": architectures})
    assert reason == (
        f"its architecture {architectures!r} is none of LlavaForConditionalGeneration, "
        "LlavaNextForConditionalGeneration"
    )


def test_text_alone_in_the_hf_layout_is_refused() -> None:
    config = {"architectures": ["LlavaForConditionalGeneration"], "hidden_size": 64}
    assert isinstance(match(config), str)


def test_the_directorys_name_is_no_evidence() -> None:
    assert match(ORIGINAL | {"_name_or_path": "yi-vl-6b"}) is True


@pytest.mark.parametrize(
    "tower",
    [
        "/data/internal/models/clip-vit-large-patch14-336",
        "/home/eva/clip-vit",
        "./retrieval/clip",
        "eva/clip-vit-large",
    ],
)
def test_a_word_in_the_path_is_no_tower(tower: str) -> None:
    assert match(ORIGINAL | {"mm_vision_tower": tower}) is True


def test_a_projector_of_absurd_depth_is_refused() -> None:
    assert match(ORIGINAL | {"mm_projector_type": "mlp999999x_gelu"}) is not True
