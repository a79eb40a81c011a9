"""llava-hf checkpoints, saved by transformers itself, answer as transformers' own models do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TOKENIZER, write_json
from PIL import Image
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

import vlcore
from vlcore.testing import PluginConformance

EDGE = 56
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
SIZES = [(56, 56), (300, 200), (41, 500), (3, 300), (1, 1), (168, 56)]
NEW_TOKENS = 8
LLAMA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{% for message in messages %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] }}{% endfor %}{{' [/INST]' }}{% endfor %}"
)


def write_tokenizer(directory: Path, *, legacy: bool) -> None:
    """Write the files of a released llava-hf tokenizer."""
    backend = json.loads(LlamaTokenizer.from_pretrained(TOKENIZER).backend_tokenizer.to_str())
    backend["pre_tokenizer"] = None
    backend["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    special = {0: "<unk>", 1: "<s>", 2: "</s>", 700: "<image>", 701: "<pad>"}
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    added = {i: {"content": text, "special": True} | flags for i, text in special.items()}
    backend["added_tokens"] += [{"id": i} | added[i] for i in (700, 701)]
    directory.mkdir()
    write_json(directory / "tokenizer.json", backend)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": legacy,
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {str(i): token for i, token in added.items()},
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "extra_special_tokens": {"image_token": "<image>"},
        },
    )


def build_model(family: str, text_type: str) -> Any:
    """Draw a tiny model whose logits are well separated."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 768,
        "max_position_embeddings": 4096,
    }
    text = LlamaConfig(**sizes) if text_type == "llama" else MistralConfig(**sizes)
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=EDGE,
        patch_size=14,
        projection_dim=16,
    )
    shared: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": 700,
        "pad_token_id": 701,
        "image_seq_length": 16,
    }
    model: Any
    if family == "llava":
        model = LlavaForConditionalGeneration(LlavaConfig(**shared))
    else:
        config = LlavaNextConfig(**shared, image_grid_pinpoints=PINPOINTS)
        model = LlavaNextForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.25)
    return model.eval()


def write(directory: Path, family: str, text_type: str, style: str, *, legacy: bool) -> Any:
    """Save model, tokenizer and processor as released ("old") or as transformers 5 does."""
    write_tokenizer(directory, legacy=legacy)
    model = build_model(family, text_type)
    model.save_pretrained(directory)
    template = LLAMA_TEMPLATE if text_type == "llama" else MISTRAL_TEMPLATE
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": EDGE},
        "crop_size": {"height": EDGE, "width": EDGE},
    }
    facts: dict[str, Any] = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
    }
    tokenizer = AutoTokenizer.from_pretrained(directory)
    processor: Any
    if family == "llava":
        images: Any = CLIPImageProcessorPil(**sizes)
        processor = LlavaProcessor(images, tokenizer, chat_template=template, **facts)  # type: ignore[no-untyped-call]
    else:
        images = LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=PINPOINTS)
        processor = LlavaNextProcessor(images, tokenizer, chat_template=template, **facts)  # type: ignore[no-untyped-call]
    if style == "v5":
        processor.save_pretrained(directory)
        return model
    write_json(directory / "chat_template.json", {"chat_template": template})
    saved = {key: value for key, value in images.to_dict().items() if value is not None}
    kind = "CLIPImageProcessor" if family == "llava" else "LlavaNextImageProcessor"
    write_json(directory / "preprocessor_config.json", saved | {"image_processor_type": kind})
    name = "LlavaProcessor" if family == "llava" else "LlavaNextProcessor"
    write_json(directory / "processor_config.json", facts | {"processor_class": name})
    return model


def random_images() -> list[Image.Image]:
    noise = np.random.default_rng(0)
    return [
        Image.fromarray(noise.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize(size)
        for size in SIZES
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about its own saved files
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "not-legacy"])
@pytest.mark.parametrize("style", ["old", "v5"])
@pytest.mark.parametrize(
    ("family", "text_type"),
    [("llava", "llama"), ("llava_next", "llama"), ("llava_next", "mistral")],
)
def test_answers_are_those_of_transformers(
    tmp_path: Path, family: str, text_type: str, style: str, legacy: bool
) -> None:
    directory = tmp_path / "checkpoint"
    model = write(directory, family, text_type, style, legacy=legacy)
    processor = AutoProcessor.from_pretrained(directory)  # type: ignore[no-untyped-call]
    cases: list[tuple[list[Image.Image], str]] = [
        *(([image], "What is shown in this image?") for image in random_images()),
        (random_images()[1:3], "  Compare, 比較 🙂\n"),
        ([], "Hello"),
    ]
    with vlcore.pipeline(directory, device="cpu", dtype="float32") as pipe:
        for images, question in cases:
            content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
            messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
            text = processor.apply_chat_template(messages, add_generation_prompt=True)
            inputs = processor(images=images or None, text=text, return_tensors="pt")
            with torch.inference_mode():
                generated = model.generate(
                    **inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
                )
            answer = pipe(messages, {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS})
            assert pipe.template.render(messages) == text
            assert answer.input_token_len == inputs.input_ids.shape[1]
            assert list(answer.token_ids) == generated[0, inputs.input_ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llava-hf") / "checkpoint"
    write(directory, "llava_next", "mistral", "old", legacy=False)
    return directory


class TestLlavaHf(PluginConformance):
    plugin = "vl-plugin-llava"
