"""Tiny random models of transformers that need more than embeddings, with their references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from vlcore.checkpoint.checkpoint import Checkpoint
from vlcore.engines.base import EngineRequest
from vlcore.engines.generation import GenerationConfig
from vlcore.language.causal_lm import build_causal_lm
from vlcore.language.model import LanguageModel
from vlcore.language.prompt_inputs import (
    PromptInputs,
    grid_positions,
    image_groups,
    whole_prompt_group,
)
from vlcore.prompts.tokenization import Span, TokenizedPrompt

IMAGE_TOKEN = 5
VOCABULARY = 700
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 6,
    "vision_start_token_id": 7,
    "vision_end_token_id": 8,
    "tie_word_embeddings": False,
}
_GRID_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
    "in_channels": 3,
}
_SIGLIP: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_DELTA_NET: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def _rope(**options: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    return {"rope_parameters": rope | options}


_GRID_FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": ("Qwen2VL", _rope(), {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 1}),
    "qwen2_5_vl": ("Qwen2_5_VL", _rope(), {"window_size": 16, "fullatt_block_indexes": [1]}),
    "qwen3_vl": (
        "Qwen3VL",
        _rope(mrope_interleaved=True),
        {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
    ),
    "qwen3_5": (
        "Qwen3_5",
        _rope(mrope_interleaved=True, partial_rotary_factor=1.0)
        | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | _DELTA_NET,
        {"num_position_embeddings": 64},
    ),
}
_GROUP_FAMILIES = ("gemma3", "paligemma")
_TEXT_FAMILIES: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3},
    "gemma2": {"sliding_window": 8},
    "deepseek_v3": {  # caches keys and values compressed, and expands them
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "head_dim": 4,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 6,
        "first_k_dense_replace": 3,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
    },
    "gemma4_text": {  # the last two layers read the keys and values of earlier ones
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 2,
        "layer_types": [
            "sliding_attention",
            "full_attention",
            "sliding_attention",
            "sliding_attention",
            "full_attention",
        ],
        "sliding_window": 8,
        "per_layer_config": None,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
    "gpt_oss": {
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}
FAMILIES = (*_GRID_FAMILIES, *_GROUP_FAMILIES, *_TEXT_FAMILIES)


def config_of(model_type: str, **values: Any) -> Any:
    """Create a configuration of transformers, whose type checkers do not know all values."""
    config_class: Any = transformers.CONFIG_MAPPING[model_type]
    return config_class(**values)


@dataclass(frozen=True)
class TinyFamily:
    """A language model for the engine, and the model of transformers that it is part of."""

    name: str
    requires: frozenset[str]
    model: transformers.PreTrainedModel
    """The language model."""
    reference: Any
    """The whole model."""

    def request(self, num_tokens: int, images: Sequence[int] = (), **options: Any) -> FamilyRequest:
        """Draw a request of text, with each of the images after a quarter of the text.

        Args:
            num_tokens: number of tokens of text, at least one.
            images: a number for each image, which determines its size and values.
            options: options of the generation.
        """
        draw = torch.Generator().manual_seed(num_tokens + 100 * sum(images) + len(images))
        token_ids: list[int] = []
        spans = []
        texts = torch.randint(10, VOCABULARY, (num_tokens,), generator=draw).tolist()
        encoded = [self._encode(seed) for seed in images]
        for index, (rows, _) in enumerate(encoded):
            token_ids += texts[index::4][:3]
            spans.append(Span(len(token_ids), len(token_ids) + len(rows), index, 0))
            token_ids += [IMAGE_TOKEN] * len(rows)
        token_ids += texts
        prompt = TokenizedPrompt(tuple(token_ids), tuple(spans))
        grids = [grid for _, grid in encoded]
        # transformers reads a generated image token as one of the prompt.
        banned: dict[str, Any] = {"bad_token_ids": (IMAGE_TOKEN,), "ignore_eos": True}
        config = GenerationConfig(**{"max_new_tokens": 8} | banned | options)
        inputs = self._inputs(prompt, grids)
        asked = EngineRequest(prompt, tuple(rows for rows, _ in encoded), config, inputs=inputs)
        return FamilyRequest(self, asked, tuple(images))

    def _inputs(self, prompt: TokenizedPrompt, grids: Sequence[tuple[int, ...]]) -> PromptInputs:
        inputs = PromptInputs()
        if self.name == "paligemma":  # positions begin at 1
            positions = torch.arange(1, len(prompt.token_ids) + 1)[None]
            return PromptInputs(positions, 1, whole_prompt_group(prompt))
        if "mrope" in self.requires and grids:
            inputs = grid_positions(prompt, grids)
        if "attention_groups" in self.requires and grids:
            inputs = replace(inputs, attention_groups=image_groups(prompt))
        return inputs

    def _pixels(self, seed: int) -> tuple[Tensor, tuple[int, ...]]:
        draw = torch.Generator().manual_seed(seed)
        if self.name in _GROUP_FAMILIES:
            return torch.randn(1, 3, 32, 32, generator=draw), (1, 1, 1)
        grid = (1, 2 + 2 * (seed % 3), 2 + 2 * (seed // 3 % 3))
        return torch.randn(grid[1] * grid[2], 3 * 2 * 4 * 4, generator=draw), grid

    @torch.inference_mode()
    def _encode(self, seed: int) -> tuple[Tensor, tuple[int, ...]]:
        pixels, grid = self._pixels(seed)
        if self.name in _GROUP_FAMILIES:
            return self.reference.model.get_image_features(pixels).pooler_output[0], grid
        features = self.reference.model.get_image_features(pixels, torch.tensor([grid]))
        rows = features.pooler_output[0]
        if "deepstack" in self.requires:
            rows = torch.cat([rows, *(added[0] for added in features.deepstack_features)], dim=1)
        return rows, (1, grid[1] // 2, grid[2] // 2)


class BuiltLanguageModel(LanguageModel):
    """A language model that exists already."""

    def __init__(self, family: TinyFamily) -> None:
        self.model = family.model
        self.requires = family.requires
        self.checkpoint = cast(
            "Checkpoint", SimpleNamespace(name=family.name, read_json=lambda _: None)
        )
        if "deepstack" in family.requires:
            self.row_width = 3 * self.hidden_size

    @property
    def transformers_config(self) -> PretrainedConfig:
        return self.model.config

    def to_transformers(self, *_: Any, **__: Any) -> PreTrainedModel:
        return self.model


@dataclass(frozen=True)
class FamilyRequest:
    """A request, and what transformers generates for it."""

    family: TinyFamily
    request: EngineRequest
    images: tuple[int, ...]

    @torch.inference_mode()
    def expected(self) -> tuple[int, ...]:
        """Generate greedily with transformers, prompt by prompt."""
        inputs = self._reference_inputs()
        model = self.family.reference
        model.generation_config.eos_token_id = None
        generated = model.generate(
            max_new_tokens=self.request.config.max_new_tokens,
            suppress_tokens=[IMAGE_TOKEN],
            do_sample=False,
            pad_token_id=0,
            **inputs,
        )
        return tuple(generated[0, inputs["input_ids"].shape[1] :].tolist())

    @torch.inference_mode()
    def expected_logits(self) -> Tensor:
        """Compute the logits of the prompt with transformers, [tokens, vocab]."""
        logits: Tensor = self.family.reference(**self._reference_inputs()).logits[0]
        return logits

    def _reference_inputs(self) -> dict[str, Any]:
        name = self.family.name
        token_ids = torch.tensor([self.request.prompt.token_ids])
        is_image = (token_ids == IMAGE_TOKEN).long()
        inputs: dict[str, Any] = {"input_ids": token_ids}
        if name in _GRID_FAMILIES:
            inputs["mm_token_type_ids"] = is_image
        elif name in _GROUP_FAMILIES:
            inputs["token_type_ids"] = is_image if name == "gemma3" else torch.zeros_like(is_image)
        if self.images:
            pixels = [self.family._pixels(seed) for seed in self.images]
            inputs["pixel_values"] = torch.cat([values for values, _ in pixels])
            if name in _GRID_FAMILIES:
                inputs["image_grid_thw"] = torch.tensor([grid for _, grid in pixels])
        return inputs


def tiny_family(name: str) -> TinyFamily:
    """Build the models of a family."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in _TEXT_FAMILIES:
            config = config_of(name, **TEXT | _TEXT_FAMILIES[name])
            whole = _with_random_weights(build_causal_lm(config))
            return TinyFamily(name, frozenset(), whole, whole)
        requires = frozenset({"mrope"} if name in _GRID_FAMILIES else {"attention_groups"})
        if name == "qwen3_vl":
            requires |= {"deepstack"}
        if name == "paligemma":
            requires |= {"mrope"}
        whole = _with_random_weights(_whole_model(name))
    model: Any = build_causal_lm(whole.config.get_text_config())
    weights = {
        f"model.{key}": value for key, value in whole.model.language_model.state_dict().items()
    }
    model.load_state_dict(weights | {"lm_head.weight": whole.lm_head.weight})
    model.eval()
    return TinyFamily(name, requires, model, whole)


def _whole_model(name: str) -> Any:
    if name in _GRID_FAMILIES:
        prefix, text, vision = _GRID_FAMILIES[name]
        config = getattr(transformers, f"{prefix}Config")(
            text_config=TEXT | text, vision_config=_GRID_VISION | vision, **_TOKENS
        )
        return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    if name == "gemma3":
        sliding = ["sliding_attention", "full_attention", "sliding_attention"]
        text = {"sliding_window": 3, "layer_types": sliding, "query_pre_attn_scalar": 8}
        return transformers.Gemma3ForConditionalGeneration(
            config_of(
                "gemma3",
                text_config=TEXT | text,
                vision_config=_SIGLIP,
                mm_tokens_per_image=4,
                image_token_id=IMAGE_TOKEN,
                boi_token_id=7,
                tie_word_embeddings=False,
                eoi_token_id=8,
            )
        )
    return transformers.PaliGemmaForConditionalGeneration(
        config_of(
            "paligemma",
            text_config=TEXT | {"model_type": "gemma"},
            vision_config=_SIGLIP | {"projection_dim": 32},
            projection_dim=32,
            image_token_id=IMAGE_TOKEN,
            tie_word_embeddings=False,
        )
    )


def _with_random_weights(model: Any) -> Any:
    """Draw weights so large that attention, positions and images have an effect on the tokens."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and "norm" in name and "weight" in name
            is_around_one = is_scale and "emma" not in type(model).__name__
            parameter.normal_(1.0 if is_around_one else 0.0, 0.2 if parameter.ndim > 1 else 0.1)
    return model.eval()
