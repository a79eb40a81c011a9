"""Tiny random checkpoints of both architectures, saved by transformers itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

# The models are tiny: threads that wait for each other cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")

EDGE = 28
SPECIAL_TOKENS = ["<|im_start|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
TILE_TOKENS = [f"<row_{line}_col_{column}>" for line in range(1, 4) for column in range(1, 4)]
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""What SmolVLM ships."""
CORPUS = [
    "User: What is in this image? Assistant: A red circle is on the table.",
    "User: How many objects are there, and of which colour?\n\nAssistant: Three; one is blue.",
    "System: Answer in one sentence.\n",
]
MODELS = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
}


def write_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 400 tokens; the last tile tokens are left out, and stay text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400 - len(SPECIAL_TOKENS) - len(TILE_TOKENS) - 1,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in (*SPECIAL_TOKENS, "<global-img>")]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in TILE_TOKENS])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<end_of_utterance>",
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    return fast


def write_checkpoint(
    directory: Path,
    model_type: str = "smolvlm",
    *,
    image_size: int = EDGE,
    longest_edge: int = 3 * EDGE,
    processor: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a model of a few thousand parameters: tiles of 28 pixels, 4 rows each.

    Args:
        directory: an empty or absent directory.
        model_type: ``"idefics3"`` or ``"smolvlm"``.
        image_size: that of the vision encoder's own grid of positions.
        longest_edge: what an image is resized to before it is cut.
        processor: changes of ``preprocessor_config.json``.
        config: changes of ``config.json``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(directory)
    config_class, model_class = MODELS[model_type]
    torch.manual_seed(0)
    values = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": 7,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    } | config
    model = model_class(config_class(**values)).eval()
    with torch.no_grad():  # weights of 0.02 would give the same answer whatever the image
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            elif "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    settings = {
        "image_processor_type": f"{model_class.__name__.removesuffix('ForConditionalGeneration')}"
        "ImageProcessor",
        "do_image_splitting": True,
        "size": {"longest_edge": longest_edge},
        "max_image_size": {"longest_edge": EDGE},
    }
    write_json(directory / "preprocessor_config.json", settings | dict(processor or {}))
    return directory


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(values, indent=2), "utf-8")


@pytest.fixture(scope="session", params=list(MODELS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each architecture, which no test changes."""
    return write_checkpoint(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes another checkpoint: ``write(model_type, **changes)``."""
    return lambda *arguments, **changes: write_checkpoint(tmp_path / "model", *arguments, **changes)
