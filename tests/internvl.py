"""A plugin for InternVL, written by hand, a tiny checkpoint, and ways to break it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints import write_json
from distributions import Site
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from vlcore.testing import tiny_tokenizer

ARCHITECTURE = "InternVLForConditionalGeneration"
NAME = "vl-plugin-intern"
EDGE = 28

HOOKS = """
from vlcore import hookimpl


@hookimpl
def vl_match(config):
    return True if config.get("model_type") == "internvl" else "it is no InternVL"


@hookimpl
def vl_vision_model(checkpoint, device, dtype):
    from PARTS import InternVisionModel

    return InternVisionModel(checkpoint, device, dtype)


@hookimpl
def vl_chat_template(checkpoint):
    from PARTS import InternTemplate

    return InternTemplate(
        checkpoint.chat_template, image_token="<IMG_CONTEXT>", variables=checkpoint.special_tokens
    )


@hookimpl
def vl_language_model(checkpoint):
    from PARTS import load_language_model

    return load_language_model(checkpoint)
"""

PARTS = """
import torch
from torch import nn
from transformers import InternVLConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.modeling_internvl import (
    InternVLMultiModalProjector,
    InternVLVisionModel,
)

from vlcore import (
    Control,
    ImageInputs,
    JinjaTemplate,
    LanguageModel,
    Rows,
    VisionModel,
    empty_weights,
    renamed,
)

LAYOUTS = {
    "vision_tower.": "vision_tower.",
    "multi_modal_projector.": "projector.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "projector.",
}


class InternVisionModel(VisionModel):
    def __init__(self, checkpoint, device, dtype):
        config = InternVLConfig.from_dict(dict(checkpoint.config))
        settings = checkpoint.read_json("processor_config.json")["image_processor"]
        self.processor = GotOcr2ImageProcessorPil.from_dict(settings)
        self.hidden_size = config.text_config.hidden_size
        self.scale = config.downsample_ratio
        with empty_weights():
            self.vision_tower = InternVLVisionModel(config.vision_config)
            self.projector = InternVLMultiModalProjector(config)
        parts = {"vision_tower": self.vision_tower, "projector": self.projector}
        sources = renamed(checkpoint, LAYOUTS)
        checkpoint.load_module(nn.ModuleDict(parts), sources, device=device, dtype=dtype)

    def preprocess(self, image):
        tiles = self.processor([image.convert("RGB")], crop_to_patches=True, return_tensors="pt")
        return ImageInputs(tiles["pixel_values"])

    def tower(self, pixels):
        states = self.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
        return self.projector(self.shuffle(states))

    def shuffle(self, states):
        count, tokens, width = states.shape
        side = int(tokens**0.5)
        factor = int(1 / self.scale)
        grid = states.reshape(count, side, side // factor, width * factor).transpose(1, 2)
        grid = grid.reshape(count, side // factor, side // factor, width * factor**2)
        return grid.transpose(1, 2).flatten(1, 2)

    def assemble(self, features, inputs):
        return features.flatten(0, 1)


class InternTemplate(JinjaTemplate):
    def expand(self, layout, num_rows):
        return (Control("<img>"), Rows(num_rows), Control("</img>"))


def load_language_model(checkpoint):
    config = {
        **checkpoint.config["text_config"],
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": checkpoint.config["tie_word_embeddings"],
    }
    prefixes = {
        "language_model.": "",
        "model.language_model.": "model.",
        "lm_head.": "lm_head.",
    }
    return LanguageModel(checkpoint, config, renamed(checkpoint, prefixes))
"""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def install_intern(site: Site, edits: Mapping[str, str] | None = None) -> str:
    """Install the plugin, with parts of its source replaced; return its distribution's name."""
    hooks, parts = HOOKS, PARTS
    for old, new in (edits or {}).items():
        assert (hooks + parts).count(old) == 1, f"{old!r} must occur in the plugin once"
        hooks, parts = hooks.replace(old, new), parts.replace(old, new)
    second = f"intern_parts_{len(site.modules)}"
    source = hooks.replace("PARTS", second)
    module = site.install(NAME, [ARCHITECTURE], source, requires=["vlcore>=0.1,<0.2"])
    (site.root / module / f"{second}.py").write_text(parts)
    site.modules.append(second)
    return NAME


def write_intern(directory: Path, **changes: Any) -> Path:
    """Write a random checkpoint of InternVL: tiles of 28 pixels, 4 embeddings each."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        more=("<|im_start|>", "<|im_end|>"),
        chat_template=TEMPLATE,
    )
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2}
    values: dict[str, Any] = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "image_seq_length": 4,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "image_size": [EDGE, EDGE],
            "patch_size": [7, 7],
            **sizes,
        },
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **sizes,
        },
    } | changes
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(InternVLConfig(**values))
    model.train(False)
    with torch.no_grad():  # weights of 0.02 would give the same answer whatever the image
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            elif "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    images = GotOcr2ImageProcessorPil(
        size={"height": EDGE, "width": EDGE}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    own = {"image_processor": json.loads(images.to_json_string())}
    write_json(directory / "processor_config.json", settings | own)
    return directory
